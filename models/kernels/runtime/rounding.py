"""Casts of results to the dtype of memory, to the nearest even on both devices."""

from __future__ import annotations

import triton.language as tl

from models.kernels.runtime.jit import kernel_interpreted_as


def _rounded_by_integers(x, dtype: tl.constexpr):
    """The interpreter cuts the low bits of float32 off when it casts to bfloat16: here they are rounded off before."""
    if dtype != tl.bfloat16:
        return x.to(dtype)
    bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    quiet = (bits & 0xFFFF0000) | 0x00400000
    return tl.where(x != x, quiet, nearest).to(tl.float32, bitcast=True).to(dtype)


@kernel_interpreted_as(_rounded_by_integers)
def rounded(x, dtype: tl.constexpr):
    """x in `dtype`: `cvt.rn` on a GPU."""
    return x.to(dtype)
