"""Where rows begin, inside of kernels."""

from __future__ import annotations

import triton.language as tl

from models.kernels.runtime.jit import kernel


@kernel
def row_start(line, inner, outer_stride, inner_stride):
    """int64 offsets of the rows numbered `line` (int32) of what `rows.Rows` describes. The division is one of 32 bits, a fifth
    of the instructions of one of 64, and none where `inner` is 1, which Triton compiles as a constant."""
    return (line // inner).to(tl.int64) * outer_stride + (line % inner).to(tl.int64) * inner_stride
