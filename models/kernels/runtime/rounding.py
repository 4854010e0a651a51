"""Casts of results to the dtype of memory, to the nearest even on both devices."""

from __future__ import annotations

import triton.language as tl

from models.kernels.runtime.jit import kernel_interpreted_as


def _rounded_by_integers(x, dtype: tl.constexpr):
    """The interpreter cuts the low bits of float32 off when it casts to bfloat16, and subnormal ones whole; bits do neither."""
    if dtype != tl.bfloat16:
        return x.to(dtype)
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x0040
    return tl.where(x != x, quiet, nearest).to(tl.uint16).to(dtype, bitcast=True)


@kernel_interpreted_as(_rounded_by_integers)
def rounded(x, dtype: tl.constexpr):
    """x in `dtype`: `cvt.rn` on a GPU."""
    return x.to(dtype)
