"""`triaxis bench kernels`: fused kernels beside plain torch, its compiler and liger-kernel, as shares of what memory can do."""
