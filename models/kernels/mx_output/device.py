"""MX as a second output of a kernel that holds whole blocks of rows."""

from __future__ import annotations

import triton.language as tl

from models.kernels.mx_quantize.device import encode_rows, row_scales, widened
from models.kernels.mx_quantize.packing import store_rows
from models.kernels.runtime.jit import kernel


@kernel
def store_output(
    elements,
    scales,
    value,
    row,
    first,
    there,
    WIDTH: tl.constexpr,
    ELEMENT: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
):
    """Write value [R, N], of the dtype of the result, whose rows (int64 [R, 1]; there: bool [R, 1]) have WIDTH elements, of
    which these begin at `first`, a multiple of 32."""
    rows: tl.constexpr = value.shape[0]
    groups: tl.constexpr = value.shape[1] // 32
    wide = widened(value)
    byte = row_scales(wide, ELEMENT, MODE)
    codes = encode_rows(wide, byte, 0, ELEMENT, "nearest_even")
    line = tl.reshape(row, (rows,)) * (WIDTH * BITS // 8)
    store_rows(elements, line, first, codes, tl.reshape(there, (rows,)), WIDTH, ELEMENT)
    group = first // 32 + tl.arange(0, groups)[None, :]
    place = scales + row * (WIDTH // 32) + group
    tl.store(place, byte.to(tl.uint8), mask=there & (group < WIDTH // 32))
