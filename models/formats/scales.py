"""Shared scales: powers of two (E8M0) by the four published rules, and NVFP4's E4M3 scales under one of the tensor.

Source: OCP Microscaling v1.0, section 6.3 (floor); NVIDIA's MXFP8 recipe, arXiv 2506.08027 (rceil); NVFP4, arXiv 2509.25149.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.formats.elements import ELEMENTS, Element, decode, encode, parts, top_bit

MODES = ("floor", "rceil", "ceil", "even")

BIAS = 127
"""Of E8M0: byte b is 2^(b - 127)."""

NAN = 0xFF
"""The E8M0 byte that makes every element of its block NaN."""

NAN_E4M3 = 0x7F


def shared_exponent(amax: Tensor, element: Element, mode: str) -> Tensor:
    """E8M0 bytes, uint8, for blocks whose largest magnitudes are `amax`, float32, any shape.

    floor: 2^(floor(log2 amax) - emax), the specification's: up to 2^emax * 2 may saturate. ceil: the same with the
    logarithm rounded up. rceil: the smallest power of two with which amax does not saturate. even: floor of amax rounded
    to the element's mantissa first. 0 for a block of zeros; NAN for one with NaN or infinity.
    """
    _, significand, exponent = parts(amax)
    top = top_bit(significand)
    whole = significand << (23 - top).clamp(0, 23)  # with its highest bit in place 23
    found = exponent + top - element.largest_exponent
    if mode == "rceil":
        _, most, place = parts(torch.tensor([element.largest], dtype=torch.float32))
        assert int(place) + 23 == element.largest_exponent
        found = found + (whole > int(most))
    elif mode == "ceil":
        found = found + (whole > 1 << 23)
    elif mode == "even":
        found = found + (whole + (1 << (22 - element.mantissa_bits)) >= 1 << 24)
    byte = torch.where(significand == 0, 0, found.clamp(-BIAS, BIAS) + BIAS)
    return torch.where(amax.isfinite(), byte, NAN).to(torch.uint8)


def power(byte: Tensor) -> Tensor:
    """What E8M0 bytes stand for: float32, exact also where it is subnormal; NaN for NAN."""
    exponent = byte.to(torch.int32) - BIAS
    bits = torch.where(exponent > -BIAS, (exponent + BIAS) << 23, 1 << 22)
    return torch.where(byte == NAN, torch.nan, bits.to(torch.int32).view(torch.float32))


def spread(scales: Tensor, block: int, square: bool) -> Tensor:
    """What belongs to blocks [..., n / block] for each of their elements [..., n]; of square ones along the last two
    dimensions."""
    found = scales.repeat_interleave(block, -1)
    return found.repeat_interleave(block, -2) if square else found


def tensor_scale(amax: Tensor) -> Tensor:
    """NVFP4's scale of a whole tensor, float32 scalar: with it the largest block scale is E4M3's largest number. 1 for
    zeros."""
    largest = ELEMENTS["e4m3"].largest * ELEMENTS["e2m1"].largest
    return torch.where((amax > 0) & amax.isfinite(), amax / largest, 1.0).clamp_min(torch.finfo(torch.float32).tiny)


def block_scale(amax: Tensor, whole: Tensor) -> Tensor:
    """NVFP4's scales of blocks, E4M3 codes uint8: amax / 6 / the tensor's scale, to the nearest even; NaN for blocks that
    are."""
    element, largest = ELEMENTS["e4m3"], ELEMENTS["e2m1"].largest
    wanted = torch.where(amax.isfinite(), amax, 0.0) / largest / whole
    codes = encode(wanted, torch.zeros_like(wanted, dtype=torch.int64), element, "nearest_even")
    return torch.where(amax.isfinite(), codes, NAN_E4M3).to(torch.uint8)


def block_value(codes: Tensor, whole: Tensor) -> Tensor:
    """What NVFP4 elements of blocks are multiplied by: float32."""
    return decode(codes, ELEMENTS["e4m3"]) * whole
