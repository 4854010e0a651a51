"""What every kernel stands on: Triton functions that run on both kinds of device, compilation without one, CUDA libraries."""
