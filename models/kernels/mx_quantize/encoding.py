"""Scales, codes and random bits in 32-bit arithmetic of plain torch: what `device` does in Triton, operation by operation.

Temporaries are changed in place: on CPU a fresh one costs more than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.formats.elements import Element
from models.formats.packing import GROUP
from models.formats.random import mix32
from models.formats.scales import NAN
from models.kernels.mx_quantize.constants import carry, random_key

_INFINITY = 0x7F800000
_SIGNED = {2: torch.int16, 4: torch.int32}


def largest(blocks: Tensor) -> Tensor:
    """Largest magnitudes, float32 [P, 1, I], of blocks [P, K, I] of float32, bfloat16 or float16; NaN above infinity."""
    if blocks.dtype == torch.float32:
        return blocks.abs().amax(1, keepdim=True)
    bits = blocks.view(torch.int16).bitwise_and(0x7FFF).amax(1, keepdim=True)
    return bits.view(blocks.dtype).to(torch.float32)


def scale_bytes(amax: Tensor, element: Element, mode: str) -> Tensor:
    """E8M0 bytes, int32, for the largest magnitudes of blocks, float32."""
    bits = amax.view(torch.int32) & 0x7FFFFFFF  # torch's maximum may set the sign of NaN
    # Of subnormal ones only those of 2^-127 and more may have a scale above the smallest: shifted, their fraction stands
    # where that of normal ones does.
    normal = torch.where(bits < 0x800000, (2 * bits - 0x800000).clamp_min(0), bits)
    byte = (((normal + carry(element, mode)) >> 23) - element.largest_exponent).clamp(0, 254)
    return torch.where(bits >= _INFINITY, NAN, byte)


def inverse_power(byte: Tensor) -> Tensor:
    """2^(127 - byte), float32, of E8M0 bytes, int32; of no meaning for NAN."""
    return torch.where(byte >= 254, 1 << 22, (254 - byte) << 23).to(torch.int32).view(torch.float32)


def encode(
    scaled: Tensor, signs: Tensor, keep: Tensor, element: Element, rounding: str, random: Tensor | None
) -> Tensor:
    """Codes, uint8. scaled: magnitudes in units of their scale, float32, consumed. signs: float numbers of the same shape whose
    signs are taken. keep: uint8, broadcast, 0 for blocks that are no numbers and 255 for others. random: int64 in
    [0, 2^32), for stochastic rounding."""
    codes = _round(scaled, element, rounding, random).to(torch.uint8).clamp_max_(element.largest_code)
    bits, width = signs.view(_SIGNED[signs.itemsize]), signs.itemsize * 8
    if element.integer:
        sign = (bits >> (width - 1)).to(torch.uint8)  # 255 for negative numbers: two's complement
        codes = codes.bitwise_xor_(sign).sub_(sign)
    else:
        sign = (bits >> (width - element.bits)).to(torch.uint8)
        codes = codes.bitwise_or_(sign.bitwise_and_(1 << (element.bits - 1)))
    return codes.bitwise_and_(keep)


def _round(scaled: Tensor, element: Element, rounding: str, random: Tensor | None) -> Tensor:
    """Codes of magnitudes, int32, below 256 for those below 2^(emax + 2)."""
    shift, smallest = 23 - element.mantissa_bits, (element.smallest_exponent + 127) << 23
    bits = scaled.view(torch.int32)
    place: Tensor | int = smallest
    if not element.integer:
        place = bits.bitwise_and(_INFINITY).clamp_min_(smallest)
    if rounding == "stochastic":
        assert random is not None
        # In units of 2^-32 of an element's last place, of which the definition looks at whole ones.
        factor = ((254 + 32 + element.mantissa_bits) << 23) - torch.as_tensor(place, dtype=torch.int32)
        rounded = scaled.mul_(factor.view(torch.float32)).to(torch.int64).add_(random).bitwise_right_shift_(32)
        rounded = rounded.to(torch.int32)
    else:
        if rounding == "half_away":  # a tie has zeros below: a one there puts it above, and moves nothing else past one
            bits.bitwise_or_(1)
        magic = torch.as_tensor(place + (shift << 23), dtype=torch.int32)
        rounded = scaled.add_(magic.view(torch.float32)).view(torch.int32).sub_(magic)
    return rounded if isinstance(place, int) else rounded.add_(place.sub_(smallest).bitwise_right_shift_(shift))


def random_bits(key: int, index: Tensor) -> Tensor:
    """`models.formats.random.bits` of places below 2^32: int64 in [0, 2^32)."""
    low, high = random_key(key)
    x = mix32(index.to(torch.int32).bitwise_xor_(low))
    return mix32(x.bitwise_xor_(high)).to(torch.int64).bitwise_and_(0xFFFFFFFF)


def pack_blocks(codes: Tensor, bits: int) -> Tensor:
    """Codes [P, K, I] packed along K: uint8 [P, K * bits / 8, I]."""
    count, size = GROUP[bits]
    if count == 1:
        return codes
    groups = codes.view(len(codes), -1, count, codes.shape[2])
    parts = [groups[:, :, place] for place in range(count)]
    if bits == 4:
        return parts[0].bitwise_or(parts[1] << 4)
    made = [parts[byte] >> (2 * byte) | parts[byte + 1] << (6 - 2 * byte) for byte in range(size)]
    return torch.stack(made, 2).flatten(1, 2)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Contiguous codes [P, K] packed: uint8 [P, K * bits / 8]. Whole words at a time, little-endian."""
    if bits == 8:
        return codes
    if bits == 4:
        pairs = codes.view(torch.int16)
        return (pairs | (pairs >> 4)).to(torch.uint8)
    words = codes.view(torch.int32)
    pairs = (words & 0x003F003F) | ((words >> 2) & 0x0FC00FC0)
    quads = (pairs & 0xFFF) | ((pairs >> 4) & 0xFFF000)  # 24 bits each; four of them are three words
    a, b, c, d = quads.view(len(codes), -1, 4).unbind(2)
    return torch.stack([a | b << 24, b >> 8 | c << 16, c >> 16 | d << 8], 2).flatten(1).view(torch.uint8)
