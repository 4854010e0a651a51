"""Fused kernels: of each a reference in plain torch and the implementations that equal it."""
