"""Scaling laws: fits of measured losses, and recipes for a budget."""
