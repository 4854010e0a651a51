"""Elements of 8, 6 and 4 bits between registers and memory, in Triton: `models.formats.packing`, whole words at a time."""

from __future__ import annotations

import triton.language as tl

from models.kernels.mx_quantize.device import element_bits
from models.kernels.runtime.jit import kernel


@kernel
def store_rows(target, row, column, codes, row_mask, columns, ELEMENT: tl.constexpr):
    """Write codes [R, N] packed, the lowest bits first, to uint8 rows. target: of the tensor. row: int64 [R], bytes from
    there to each row. column: first element of the codes in the row, a multiple of 32. row_mask: bool [R]. columns: of the
    row, elements, a multiple of 32; none beyond is written. Rows begin at multiples of 4 bytes."""
    rows: tl.constexpr = codes.shape[0]
    width: tl.constexpr = codes.shape[1]
    if element_bits(ELEMENT) == 8:
        place = column + tl.arange(0, width)
        mask = row_mask[:, None] & (place < columns)[None, :]
        tl.store(target + row[:, None] + place[None, :], codes.to(tl.uint8), mask=mask)
    elif element_bits(ELEMENT) == 4:
        low, high = tl.split(tl.reshape(codes, (rows, width // 2, 2)))
        place = column // 2 + tl.arange(0, width // 2)
        mask = row_mask[:, None] & (place < columns // 2)[None, :]
        tl.store(target + row[:, None] + place[None, :], (low | (high << 4)).to(tl.uint8), mask=mask)
    else:
        words = _words(codes)  # [R, N / 16, 4], the last of four empty: a warp's stores lie side by side
        part = tl.arange(0, 4)[None, None, :]
        place = (column // 16 + tl.arange(0, width // 16))[None, :, None]
        mask = row_mask[:, None, None] & (place < columns // 16) & (part < 3)
        where = (target + row[:, None, None] + 12 * place + 4 * part).to(tl.pointer_type(tl.int32))
        tl.store(where, words, mask=mask)


@kernel
def _words(codes):
    """16 codes of 6 bits as three 32-bit words and an empty one: int32 [R, N / 16, 4]."""
    rows: tl.constexpr = codes.shape[0]
    groups: tl.constexpr = codes.shape[1] // 16
    even, odd = tl.split(tl.reshape(codes, (rows, groups, 4, 2, 2)))
    first, second = tl.split(even | (odd << 6))
    quads = first | (second << 12)  # [R, N / 16, 4]: 24 bits each
    left, right = tl.split(tl.reshape(quads, (rows, groups, 2, 2)))
    a, c = tl.split(left)
    b, d = tl.split(right)
    words = tl.join(tl.join(a | (b << 24), (c >> 16) | (d << 8)), tl.join((b >> 8) | (c << 16), a * 0))
    return tl.reshape(words, (rows, groups, 4))


@kernel
def load_rows(source, row, column, row_mask, columns, WIDTH: tl.constexpr, ELEMENT: tl.constexpr):
    """What `store_rows` wrote: codes, int32 [R, WIDTH], from element `column` on."""
    rows: tl.constexpr = row.shape[0]
    if element_bits(ELEMENT) == 8:
        place = column + tl.arange(0, WIDTH)
        mask = row_mask[:, None] & (place < columns)[None, :]
        return tl.load(source + row[:, None] + place[None, :], mask=mask, other=0).to(tl.int32)
    elif element_bits(ELEMENT) == 4:
        place = column // 2 + tl.arange(0, WIDTH // 2)
        mask = row_mask[:, None] & (place < columns // 2)[None, :]
        pairs = tl.load(source + row[:, None] + place[None, :], mask=mask, other=0).to(tl.int32)
        return tl.reshape(tl.join(pairs & 0xF, pairs >> 4), (rows, WIDTH))
    else:
        part = tl.arange(0, 4)[None, None, :]
        place = (column // 16 + tl.arange(0, WIDTH // 16))[None, :, None]
        mask = row_mask[:, None, None] & (place < columns // 16) & (part < 3)
        where = (source + row[:, None, None] + 12 * place + 4 * part).to(tl.pointer_type(tl.int32))
        words = tl.load(where, mask=mask, other=0)
        even, odd = tl.split(tl.reshape(words, (rows, WIDTH // 16, 2, 2)))
        first, third = tl.split(even)
        second, _ = tl.split(odd)
        b = ((first >> 24) & 0xFF) | (second << 8)
        c = ((second >> 16) & 0xFFFF) | (third << 16)
        quads = tl.join(tl.join(first, c), tl.join(b, third >> 8))  # 24 bits each are of use
        quads = tl.reshape(quads, (rows, WIDTH // 16, 4, 1))
        codes = (quads >> (6 * tl.arange(0, 4))[None, None, None, :]) & 0x3F
        return tl.reshape(codes, (rows, WIDTH))
