"""Kernels into MX and back in Triton: x is read once, by tiles, whatever is written of it.

A tensor is looked at as batches of matrices [R, N] whose rows lie in memory. Along rows blocks are stored as they lie; along
columns the matrix is stored transposed, so that the blocked dimension lies along memory for the product that reads it next.
"""

from __future__ import annotations

import triton.language as tl

from models.kernels.mx_quantize.device import (
    block_amax,
    decode,
    encode,
    encode_nvfp4,
    nvfp4_scale,
    power,
    random_bits,
    round_to_bfloat16,
    scale_byte,
    spread,
    widened,
)
from models.kernels.mx_quantize.packing import load_rows, store_rows
from models.kernels.runtime.jit import kernel


@kernel
def _scales(amax, whole, ELEMENT: tl.constexpr, MODE: tl.constexpr, NVFP4: tl.constexpr):
    """Scales, int32, of blocks."""
    if NVFP4:
        return nvfp4_scale(amax, tl.load(whole))
    return scale_byte(amax, ELEMENT, MODE)


@kernel
def _codes(
    x, scales, whole, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr, NVFP4: tl.constexpr,
    BLOCK: tl.constexpr, ALONG: tl.constexpr,
):  # fmt: skip
    """Codes, int32, of a tile under the scales of its blocks."""
    if NVFP4:
        return encode_nvfp4(x, spread(scales, BLOCK, ALONG), tl.load(whole), random, ROUNDING)
    return encode(x, spread(scales, BLOCK, ALONG), random, ELEMENT, ROUNDING)


@kernel
def _store_scales(target, start, row, column, scales, rows, columns, TURNED: tl.constexpr):
    """uint8 scales [r, c], from `row` and `column` on, into a matrix [rows, columns], or its transpose, that begins at
    `start`."""
    height: tl.constexpr = scales.shape[0]
    width: tl.constexpr = scales.shape[1]
    r = (row + tl.arange(0, height)).to(tl.int64)
    c = (column + tl.arange(0, width)).to(tl.int64)
    mask = (r < rows)[:, None] & (c < columns)[None, :]
    place = r[:, None] + c[None, :] * rows if TURNED else r[:, None] * columns + c[None, :]
    tl.store(target + start + place, scales.to(tl.uint8), mask=mask)


@kernel
def quantize_tile(
    x, elements, scales, whole, elements_t, scales_t, whole_t, key, places, places_t,
    rows, columns, batch_stride, row_stride,
    ELEMENT: tl.constexpr, ELEMENT_T: tl.constexpr, MODE: tl.constexpr, ROUNDING: tl.constexpr, NVFP4: tl.constexpr,
    NVFP4_T: tl.constexpr, BLOCK: tl.constexpr, BLOCK_T: tl.constexpr, SQUARE: tl.constexpr, WIDE: tl.constexpr,
    BITS: tl.constexpr, BITS_T: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile [HEIGHT, WIDTH] of x: blocks along rows to `elements` and `scales`, blocks along columns to `elements_t` and
    `scales_t`, transposed; BITS or BITS_T is 0 where one of them is not wanted. places [batches * rows] and places_t [columns]:
    for stochastic rounding, an element's place is their sum. Tiles below one another follow each other: what they write of
    a transposed row meets in the second cache."""
    high = tl.cdiv(rows, HEIGHT)
    top, left, batch = (tl.program_id(0) % high) * HEIGHT, (tl.program_id(0) // high) * WIDTH, tl.program_id(1)
    row, column = top + tl.arange(0, HEIGHT), left + tl.arange(0, WIDTH)
    within, inside = row < rows, column < columns
    start = tl.cast(batch, tl.int64) * batch_stride
    values = tl.load(
        x + start + row.to(tl.int64)[:, None] * row_stride + column[None, :],
        mask=within[:, None] & inside[None, :],
        other=0.0,
    )
    values = widened(values)
    random = 0
    if ROUNDING == "stochastic":
        down = tl.load(places + tl.cast(batch, tl.int64) * rows + row, mask=within, other=0)
        across = tl.load(places_t + column, mask=inside, other=0)
        if WIDE:
            random = random_bits(down[:, None] + across[None, :], tl.load(key), True)
        else:
            place = down.to(tl.uint32)[:, None] + across.to(tl.uint32)[None, :]
            random = random_bits(place, tl.load(key), False)
    before = tl.cast(batch, tl.int64) * rows * columns
    if BITS:
        along: tl.constexpr = "square" if SQUARE else "row"
        found = _scales(block_amax(values, BLOCK, along), whole, ELEMENT, MODE, NVFP4)
        codes = _codes(values, found, whole, random, ELEMENT, ROUNDING, NVFP4, BLOCK, along)
        begin = before * BITS // 8 + row.to(tl.int64) * (columns * BITS // 8)
        store_rows(elements, begin, left, codes, within, columns, ELEMENT)
        if SQUARE:
            _store_scales(scales, before // (BLOCK * BLOCK), top // BLOCK, left // BLOCK, found,
                          rows // BLOCK, columns // BLOCK, False)  # fmt: skip
        else:
            _store_scales(scales, before // BLOCK, top, left // BLOCK, found, rows, columns // BLOCK, False)
    if BITS_T:
        along_t: tl.constexpr = "square" if SQUARE else "column"
        found_t = _scales(block_amax(values, BLOCK_T, along_t), whole_t, ELEMENT_T, MODE, NVFP4_T)
        codes_t = _codes(values, found_t, whole_t, random, ELEMENT_T, ROUNDING, NVFP4_T, BLOCK_T, along_t)
        turned = tl.trans(codes_t.to(tl.uint8)).to(tl.int32)  # bytes go through shared memory, not words
        begin_t = before * BITS_T // 8 + column.to(tl.int64) * (rows * BITS_T // 8)
        store_rows(elements_t, begin_t, top, turned, inside, rows, ELEMENT_T)
        if SQUARE:
            _store_scales(scales_t, before // (BLOCK_T * BLOCK_T), top // BLOCK_T, left // BLOCK_T, found_t,
                          rows // BLOCK_T, columns // BLOCK_T, True)  # fmt: skip
        else:
            _store_scales(scales_t, before // BLOCK_T, top // BLOCK_T, left, found_t, rows // BLOCK_T, columns, True)


@kernel
def largest_of_tile(
    x, found, rows, columns, batch_stride, row_stride,
    ALONG: tl.constexpr, BLOCK: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Bits of the largest magnitude in a tile's blocks that are finite: int32, one a program."""
    high = tl.cdiv(rows, HEIGHT)
    row = (tl.program_id(0) % high) * HEIGHT + tl.arange(0, HEIGHT)
    column = (tl.program_id(0) // high) * WIDTH + tl.arange(0, WIDTH)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    start = tl.cast(tl.program_id(1), tl.int64) * batch_stride
    values = widened(
        tl.load(x + start + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
    )
    amax = block_amax(values, BLOCK, ALONG)
    finite = tl.where(amax >= 0x7F800000, 0, amax)
    tl.store(found + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), tl.max(tl.max(finite, axis=1), axis=0))


@kernel
def dequantize_tile(
    elements, scales, whole, out, rows, columns,
    ELEMENT: tl.constexpr, BLOCK: tl.constexpr, NVFP4: tl.constexpr, SQUARE: tl.constexpr, TURNED: tl.constexpr,
    BITS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of stored rows, blocked along them, to values [rows, columns] or, TURNED, [columns, rows]."""
    high = tl.cdiv(rows, HEIGHT)
    top, left = (tl.program_id(0) % high) * HEIGHT, (tl.program_id(0) // high) * WIDTH
    row, column = top + tl.arange(0, HEIGHT), left + tl.arange(0, WIDTH)
    within = row < rows
    before = tl.cast(tl.program_id(1), tl.int64) * rows * columns
    begin = before * BITS // 8 + row.to(tl.int64) * (columns * BITS // 8)
    values = decode(load_rows(elements, begin, left, within, columns, WIDTH, ELEMENT), ELEMENT)
    block = left // BLOCK + tl.arange(0, WIDTH // BLOCK)
    mask = within[:, None] & (block < columns // BLOCK)[None, :]
    line = row.to(tl.int64) // BLOCK if SQUARE else row.to(tl.int64)
    first = before // (BLOCK * BLOCK) if SQUARE else before // BLOCK
    codes = tl.load(scales + first + line[:, None] * (columns // BLOCK) + block[None, :], mask=mask, other=0)
    factor = decode(codes.to(tl.int32), "e4m3") * tl.load(whole) if NVFP4 else power(codes.to(tl.int32))
    values = values * spread(factor, BLOCK, "row")
    if out.dtype.element_ty == tl.bfloat16:
        values = round_to_bfloat16(values)
    inside = column < columns
    if TURNED:
        place = column.to(tl.int64)[:, None] * rows + row[None, :]
        tl.store(out + before + place, tl.trans(values), mask=inside[:, None] & within[None, :])
    else:
        place = row.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(out + before + place, values, mask=within[:, None] & inside[None, :])
