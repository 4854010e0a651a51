"""The element formats of OCP Microscaling v1.0 and NVFP4, and their coding in integer arithmetic, which defines it.

A value is sign, significand and exponent of its float32 bits; an element is the significand rounded at a place that
follows from the exponents of value and scale. No step rounds but that one, and none is left to a cast, whose rounding and
saturation differ between torch versions and devices. The arithmetic is in int64 so that every float32 has its place,
subnormal ones included.

Source: OCP Microscaling Formats (MX) Specification v1.0, sections 5.3 and 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from models.errors import ModelError

ROUNDINGS = ("nearest_even", "half_away", "stochastic")

_FRACTION = 32
"""Bits below the last place of an element that rounding looks at, and bits of a random number."""


@dataclass(frozen=True)
class Element:
    """A number format of a few bits. Magnitudes below 2^smallest_exponent are subnormal; `int8` has nothing else.

    largest_code: of the largest magnitude; larger ones saturate. largest_exponent: emax, its exponent. bits: of an element in
    packed storage.
    """

    name: str
    bits: int
    mantissa_bits: int
    bias: int
    largest_exponent: int
    largest_code: int

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal magnitude."""
        return 1 - self.bias

    @property
    def integer(self) -> bool:
        """Whether elements are two's complement, not sign and magnitude."""
        return self.name == "int8"

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return float(values(self)[self.largest_code])


ELEMENTS = {
    element.name: element
    for element in (
        Element("e4m3", 8, 3, 7, 8, 0x7E),
        Element("e5m2", 8, 2, 15, 15, 0x7B),
        Element("e3m2", 6, 2, 3, 4, 0x1F),
        Element("e2m3", 6, 3, 1, 2, 0x1F),
        Element("e2m1", 4, 1, 1, 2, 0x07),
        Element("int8", 8, 6, 1, 0, 0x7F),  # implicit scale 2^-6; -2 is left unused, as the specification allows
    )
}


@lru_cache
def values(element: Element) -> Tensor:
    """What every code stands for: float32 [2^bits]; NaN and infinity where the format has them."""
    codes = torch.arange(1 << element.bits, dtype=torch.int64)
    if element.integer:
        return torch.where(codes < 128, codes, codes - 256).to(torch.float32) / 64
    magnitudes = codes & ((1 << (element.bits - 1)) - 1)
    exponents, mantissas = magnitudes >> element.mantissa_bits, magnitudes & ((1 << element.mantissa_bits) - 1)
    significands = torch.where(exponents > 0, mantissas + (1 << element.mantissa_bits), mantissas)
    places = exponents.clamp_min(1) - element.bias - element.mantissa_bits
    found = torch.ldexp(significands.to(torch.float64), places).to(torch.float32)
    if element.name == "e4m3":
        found[magnitudes == 0x7F] = torch.nan
    if element.name == "e5m2":
        found[magnitudes == 0x7C] = torch.inf
        found[magnitudes > 0x7C] = torch.nan
    return torch.where(codes >> (element.bits - 1) == 1, -found, found)


def parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sign, significand, exponent) of float32 x, int64: |x| = significand * 2^exponent with an integer significand <
    2^24."""
    bits = x.contiguous().view(torch.int32).to(torch.int64)
    exponent, mantissa = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    significand = torch.where(exponent > 0, mantissa + (1 << 23), mantissa)
    return (bits >> 31) & 1, significand, exponent.clamp_min(1) - 150


def top_bit(significand: Tensor) -> Tensor:
    """Place of the highest bit of integers in [0, 2^24), int64; -127 for 0."""
    return (significand.to(torch.float32).view(torch.int32).to(torch.int64) >> 23) - 127


def encode(x: Tensor, scale: Tensor, element: Element, rounding: str, random: Tensor | None = None) -> Tensor:
    """Codes uint8 of the elements nearest to x / 2^scale.

    x: finite float32, any shape. scale: int64 exponents, broadcast. random: for `stochastic`, integers of 32 random bits,
    int64,
    like x. Magnitudes above the largest saturate. A magnitude that rounds to zero keeps its sign, but for int8.
    """
    sign, significand, exponent = parts(x)
    place = torch.maximum(exponent + top_bit(significand), scale + element.smallest_exponent)
    if element.integer:
        place = scale + torch.zeros_like(place)
    quantum = place - element.mantissa_bits
    rounded = _round(significand, exponent - quantum, rounding, random)
    # A carry out of the mantissa runs into the exponent, as it should; of a subnormal, into the first normal.
    code = rounded + ((place - scale - element.smallest_exponent) << element.mantissa_bits)
    code = code.clamp_max(element.largest_code)
    if element.integer:
        return torch.where(sign == 1, -code, code).bitwise_and_(0xFF).to(torch.uint8)
    return (code + (sign << (element.bits - 1))).to(torch.uint8)


def _round(significand: Tensor, places: Tensor, rounding: str, random: Tensor | None) -> Tensor:
    """significand * 2^places as an integer. What lies more than 32 bits below the point is cut off: it is less than 2^-8."""
    left, right = (places + _FRACTION).clamp(0, 38), (-places - _FRACTION).clamp(0, 63)
    fixed = (significand << left) >> right
    half = 1 << (_FRACTION - 1)
    if rounding == "nearest_even":
        return (fixed + (half - 1) + ((fixed >> _FRACTION) & 1)) >> _FRACTION
    if rounding == "half_away":
        return (fixed + half) >> _FRACTION
    if random is None:
        raise ModelError("rounding=stochastic: needs a key to draw from")
    return (fixed + random) >> _FRACTION


def decode(codes: Tensor, element: Element) -> Tensor:
    """What uint8 codes stand for, float32, of the same shape."""
    # a compiler looks through a cache, and says so at every call
    table = values.__wrapped__(element) if torch.compiler.is_compiling() else values(element)
    return table.to(codes.device)[codes.to(torch.int64)]
