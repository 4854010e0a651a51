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
from models.formats.scales import MODES
from models.kernels.mx_quantize.constants import carry
from models.kernels.runtime.jit import kernel

NAN_BYTE = tl.constexpr(0xFF)
"""The E8M0 byte of a block with NaN or infinity."""

_INFINITY = tl.constexpr(0x7F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


@triton.constexpr_function
def element_bits(name: str) -> int:
    """Of an element in memory."""
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


_CARRIES = {(name, mode): carry(element, mode) for name, element in ELEMENTS.items() for mode in MODES}


@triton.constexpr_function
def _carry(name: str, mode: str) -> int:
    return _CARRIES[name, mode]


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
    if ROUNDING != "stochastic":
        if ROUNDING == "half_away":  # a tie has zeros below: a one there puts it above, and moves nothing else past one
            bits = bits | 1
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
    known = significand.to(tl.uint32, bitcast=True)
    left = tl.minimum(tl.maximum(32 - right, 0), 31).to(tl.uint32)
    beyond = tl.minimum(tl.maximum(right - 32, 0), 31).to(tl.uint32)
    fraction = (known << left) >> beyond
    rounded = (significand >> tl.minimum(right, 31)) + (fraction + random < fraction).to(tl.int32)
    return rounded + ((place - smallest) << (23 - shift))


@kernel
def _signed(code, bits, ELEMENT: tl.constexpr):
    """Codes saturated, with the sign of float32 bits."""
    width: tl.constexpr = element_bits(ELEMENT)
    code = tl.minimum(code, _largest(ELEMENT))
    if ELEMENT == "int8":
        return tl.where(bits < 0, -code, code) & 0xFF
    return code | ((bits >> (32 - width)) & (1 << (width - 1)))


@kernel
def decode(code, ELEMENT: tl.constexpr):
    """float32 that codes (int32) stand for."""
    if ELEMENT == "int8":
        return ((code << 24) >> 24).to(tl.float32) * (1.0 / 64)
    width: tl.constexpr = element_bits(ELEMENT)
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
def nvfp4_scale(amax, whole):
    """NVFP4's E4M3 scales, int32, of blocks whose largest `magnitude_bits` are amax, under the tensor's scale, float32."""
    finite = tl.where(amax >= _INFINITY, 0, amax).to(tl.float32, bitcast=True)
    six = tl.full(amax.shape, 6.0, tl.float32)
    code = encode_unscaled(tl.div_rn(tl.div_rn(finite, six), whole), 0, "e4m3", "nearest_even")
    return tl.where(amax >= _INFINITY, 0x7F, code)


@kernel
def encode_nvfp4(x, scale, whole, random, ROUNDING: tl.constexpr):
    """E2M1 codes, int32, of float32 x under `nvfp4_scale`s of the same shape and the tensor's scale."""
    factor = decode(scale, "e4m3") * whole
    usable = (scale != 0x7F) & (factor > 0)
    scaled = tl.div_rn(tl.where(usable, x, 0.0), tl.where(usable, factor, 1.0))
    return encode_unscaled(scaled, random, "e2m1", ROUNDING)


@kernel
def block_amax(x, BLOCK: tl.constexpr, ALONG: tl.constexpr):
    """Largest magnitude bits of the blocks of float32 x [R, N]: [R, N / BLOCK] along `row`s, [R / BLOCK, N] along `column`s,
    [R / BLOCK, N / BLOCK] of `square`s."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    found = magnitude_bits(x)
    if ALONG != "column":
        found = tl.max(tl.reshape(found, (rows, columns // BLOCK, BLOCK)), axis=2)
    if ALONG != "row":
        found = tl.max(tl.reshape(found, (rows // BLOCK, BLOCK, found.shape[1])), axis=1)
    return found


@kernel
def spread(scales, BLOCK: tl.constexpr, ALONG: tl.constexpr):
    """Numbers of blocks, as `block_amax` lays them out, for each of their elements [R, N]."""
    rows: tl.constexpr = scales.shape[0]
    columns: tl.constexpr = scales.shape[1]
    found = scales
    if ALONG != "row":
        found = tl.broadcast_to(found[:, None, :], (rows, BLOCK, columns))
        found = tl.reshape(found, (rows * BLOCK, columns))
    if ALONG != "column":
        found = tl.broadcast_to(found[:, :, None], (found.shape[0], columns, BLOCK))
        found = tl.reshape(found, (found.shape[0], columns * BLOCK))
    return found


@kernel
def row_scales(x, ELEMENT: tl.constexpr, MODE: tl.constexpr):
    """E8M0 bytes, int32 [R, N / 32], of blocks of 32 along the rows of float32 x [R, N]."""
    return scale_byte(block_amax(x, 32, "row"), ELEMENT, MODE)


@kernel
def encode_rows(x, byte, random, ELEMENT: tl.constexpr, ROUNDING: tl.constexpr):
    """Codes, int32 [R, N], of float32 x [R, N] under the bytes [R, N / 32] of `row_scales`; random uint32 [R, N] or a
    number."""
    return encode(x, spread(byte, 32, "row"), random, ELEMENT, ROUNDING)


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
def random_bits(index, key, WIDE: tl.constexpr):
    """32 random bits, uint32, of places in the whole tensor, as `models.formats.random.bits`. index: int64 where WIDE, else
    below 2^32 and of any integer type. key: int64."""
    low = _mix(index.to(tl.uint32) ^ key.to(tl.uint32)) ^ _mix((key >> 32).to(tl.uint32))
    if WIDE:
        low = low ^ _mix((index >> 32).to(tl.uint32))
    return _mix(low)
