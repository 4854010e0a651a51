"""Block formats inside Triton kernels: scales, codes, packing and random bits in 32-bit arithmetic, for every kernel that
writes MX.

Equal bit for bit to the definition in `models.formats`, which works in int64. What makes 32 bits suffice: a value divided by
its scale, a power of two, is exact in float32 but where it is far below half the smallest element; the sum of that value and
a power of two 23 - m places above its own exponent has the element's last place as its unit, so that the adder rounds to the
nearest even; and the carry into a code is the carry of a 32-bit sum.

Names in capitals are constants: ELEMENT a name of `models.formats.elements.ELEMENTS`, MODE of `scales.MODES`, ROUNDING of
`elements.ROUNDINGS`. Values come in float32, bfloat16 and float16 by `widened`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from models.formats.elements import ELEMENTS
from models.kernels.runtime.jit import kernel

NAN_BYTE = tl.constexpr(0xFF)
"""The E8M0 byte of a block with NaN or infinity."""

_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.constexpr_function
def _bits(name: str) -> int:
    return ELEMENTS[name].bits


@triton.constexpr_function
def _mantissa(name: str) -> int:
    return ELEMENTS[name].mantissa_bits


@triton.constexpr_function
def _exponent(name: str) -> int:
    """Of the largest magnitude."""
    return ELEMENTS[name].largest_exponent


@triton.constexpr_function
def _smallest(name: str) -> int:
    """Exponent field of float32 of the smallest normal magnitude."""
    return ELEMENTS[name].smallest_exponent + 127


@triton.constexpr_function
def _largest(name: str) -> int:
    """Code of the largest magnitude."""
    return ELEMENTS[name].largest_code


@triton.constexpr_function
def _carry(name: str, mode: str) -> int:
    """What carries out of a float32 fraction where the scale's exponent is one more than floor's."""
    element = ELEMENTS[name]
    if mode == "rceil":  # fraction of the largest magnitude, which is normal: its code's mantissa; all of it for int8
        mantissa = element.largest_code & ((1 << element.mantissa_bits) - 1)
        return 0x7FFFFF - (mantissa << (23 - element.mantissa_bits))
    return {"floor": 0, "ceil": 0x7FFFFF, "even": 1 << (22 - element.mantissa_bits)}[mode]


@kernel
def widened(x):
    """float32 of bfloat16, float16 or float32 x, exact: the interpreter's own cast loses subnormal bfloat16."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@kernel
def magnitude_bits(x):
    """Of float32 x without sign, int32, which order as magnitudes do, NaN above infinity: what a block's amax is taken of."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@kernel
def scale_byte(amax, ELEMENT: tl.constexpr, MODE: tl.constexpr):
    """E8M0 bytes, int32, of blocks whose largest `magnitude_bits` are amax."""
    # Subnormal magnitudes of at least 2^-127 are the only ones whose scale may still be above the smallest (for int8, whose
    # emax is 0): shifted, their fraction stands where that of normal ones does.
    normal = tl.where(amax < 0x800000, tl.maximum(2 * amax - 0x800000, 0), amax)
    byte = ((normal + _carry(ELEMENT, MODE)) >> 23) - _exponent(ELEMENT)
    return tl.where(amax >= _INFINITY, NAN_BYTE, tl.minimum(tl.maximum(byte, 0), 254))


@kernel
def power(byte):
    """float32 that E8M0 bytes (int32) stand for: subnormal for 0, NaN for NAN_BYTE."""
    bits = tl.where(byte == 0, 1 << 22, byte << 23)
    return tl.where(byte == NAN_BYTE, 0x7FC00000, bits).to(tl.float32, bitcast=True)


@kernel
def inverse_power(byte):
    """1 / power, exact; of no meaning for NAN_BYTE."""
    return tl.where(byte >= 254, 1 << 22, (254 - byte) << 23).to(tl.float32, bitcast=True)


@kernel
def encode(x, byte, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr):
    """Codes, int32 below 2^bits, of float32 x under E8M0 bytes (int32, broadcast). random: uint32 like x for stochastic
    rounding, any number else. Blocks of NAN_BYTE are zeros."""
    bits = tl.where(byte == NAN_BYTE, 0, x.to(tl.int32, bitcast=True))
    scaled = (bits & _MAGNITUDE).to(tl.float32, bitcast=True) * inverse_power(byte)
    return _signed(_round(scaled.to(tl.int32, bitcast=True), random, ELEMENT, ROUNDING), bits, ELEMENT)


@kernel
def encode_unscaled(x, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr):
    """Codes of float32 x of any finite magnitude or infinity, not under a scale: for NVFP4."""
    bits = x.to(tl.int32, bitcast=True)
    limit = (_exponent(ELEMENT) + 1 + 127) << 23
    return _signed(_round(tl.minimum(bits & _MAGNITUDE, limit), random, ELEMENT, ROUNDING), bits, ELEMENT)


@kernel
def _round(bits, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr):
    """Code of the magnitude of float32 bits below 2^(emax + 2), not yet saturated."""
    shift: tl.constexpr = 23 - _mantissa(ELEMENT)
    smallest: tl.constexpr = _smallest(ELEMENT)
    if ROUNDING == "nearest_even":
        place = tl.full(bits.shape, smallest << 23, tl.int32)
        if ELEMENT != "int8":
            place = tl.maximum(bits & _INFINITY, smallest << 23)
        magic = place + (shift << 23)
        total = bits.to(tl.float32, bitcast=True) + magic.to(tl.float32, bitcast=True)
        return total.to(tl.int32, bitcast=True) - magic + ((place - (smallest << 23)) >> shift)
    field = bits >> 23
    place = tl.full(bits.shape, smallest, tl.int32)
    if ELEMENT != "int8":
        place = tl.maximum(field, smallest)
    significand = (bits & 0x7FFFFF) | 0x800000
    right = shift + place - field
    if ROUNDING == "half_away":
        rounded = ((significand >> tl.minimum(right - 1, 31)) + 1) >> 1
    else:
        known = significand.to(tl.uint32, bitcast=True)
        left = tl.minimum(tl.maximum(32 - right, 0), 31).to(tl.uint32)
        beyond = tl.minimum(tl.maximum(right - 32, 0), 31).to(tl.uint32)
        fraction = (known << left) >> beyond
        rounded = (significand >> tl.minimum(right, 31)) + (fraction + random < fraction).to(tl.int32)
    return rounded + ((place - smallest) << (23 - shift))


@kernel
def _signed(code, bits, ELEMENT: tl.constexpr):
    """Codes saturated, with the sign of float32 bits."""
    width: tl.constexpr = _bits(ELEMENT)
    code = tl.minimum(code, _largest(ELEMENT))
    if ELEMENT == "int8":
        return tl.where(bits < 0, -code, code) & 0xFF
    return code | ((bits >> (32 - width)) & (1 << (width - 1)))


@kernel
def decode(code, ELEMENT: tl.constexpr):
    """float32 that codes (int32) stand for."""
    if ELEMENT == "int8":
        return ((code << 24) >> 24).to(tl.float32) * (1.0 / 64)
    width: tl.constexpr = _bits(ELEMENT)
    magnitude = code & ((1 << (width - 1)) - 1)
    bits = magnitude << (23 - _mantissa(ELEMENT))
    if ELEMENT == "e4m3":  # a float32 exponent of 255 stays one under the product
        bits = tl.where(magnitude == 0x7F, 0x7FC00000, bits)
    if ELEMENT == "e5m2":
        bits = tl.where(magnitude == 0x7C, 0x7F800000, tl.where(magnitude > 0x7C, 0x7FC00000, bits))
    bits = bits | ((code >> (width - 1)) << 31)
    # Subnormal elements are subnormal float32 of these bits: the product by 2^(127 - bias) makes both what they are.
    return bits.to(tl.float32, bitcast=True) * tl.full(bits.shape, (126 + _smallest(ELEMENT)) << 23, tl.int32).to(
        tl.float32, bitcast=True
    )


@kernel
def row_scales(x, ELEMENT: tl.constexpr, MODE: tl.constexpr):
    """E8M0 bytes, int32 [R, N / 32], of blocks of 32 along the rows of float32 x [R, N]."""
    blocks = tl.reshape(magnitude_bits(x), (x.shape[0], x.shape[1] // 32, 32))
    return scale_byte(tl.max(blocks, axis=2), ELEMENT, MODE)


@kernel
def encode_rows(x, byte, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr):
    """Codes, int32 [R, N], of float32 x [R, N] under the bytes [R, N / 32] of `row_scales`; random uint32 [R, N] or a
    number."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    spread = tl.reshape(tl.broadcast_to(byte[:, :, None], (rows, columns // 32, 32)), (rows, columns))
    return encode(x, spread, random, ELEMENT, ROUNDING)


@kernel
def store_rows(target, row, column, codes, row_mask, columns, ELEMENT: tl.constexpr):
    """Write codes [R, N] packed, the lowest bits first, to uint8 rows. target: of the tensor. row: int64 [R], bytes from
    there to each row. column: first element of the codes in the row, a multiple of 32. row_mask: bool [R]. columns: of the
    row, elements, a multiple of 32; none beyond is written. Rows begin at multiples of 4 bytes."""
    rows: tl.constexpr = codes.shape[0]
    width: tl.constexpr = codes.shape[1]
    if _bits(ELEMENT) == 8:
        place = column + tl.arange(0, width)
        mask = row_mask[:, None] & (place < columns)[None, :]
        tl.store(target + row[:, None] + place[None, :], codes.to(tl.uint8), mask=mask)
    elif _bits(ELEMENT) == 4:
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
def round_to_bfloat16(x):
    """float32 to bfloat16, to the nearest even, NaN kept: the interpreter's own cast cuts off."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    kept = tl.where((bits & _MAGNITUDE) > _INFINITY, 0x7FC0, rounded)
    return kept.to(tl.int16).to(tl.bfloat16, bitcast=True)


@kernel
def _mix(x):
    """The mixer of `models.formats.random`, uint32."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@kernel
def random_bits(index, key_low, key_high, WIDE: tl.constexpr):
    """32 random bits, uint32, of places in the whole tensor, as `models.formats.random.bits`. index: int64 where WIDE, else
    below 2^32 and of any integer type. key_low, key_high: of `random_key`."""
    low = _mix(index.to(tl.uint32) ^ tl.cast(key_low, tl.uint32)) ^ tl.cast(key_high, tl.uint32)
    if WIDE:
        low = low ^ _mix((index >> 32).to(tl.uint32))
    return _mix(low)


def random_key(key: int) -> tuple[int, int]:
    """A 64-bit key as the two 32-bit numbers, signed, that `random_bits` takes: the lower half, and the upper half mixed."""
    from models.formats.random import mix_number

    halves = key & 0xFFFFFFFF, mix_number((key >> 32) & 0xFFFFFFFF)
    low, high = ((half ^ 0x80000000) - 0x80000000 for half in halves)
    return low, high
