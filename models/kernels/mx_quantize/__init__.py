"""Into MX and back, fused."""
