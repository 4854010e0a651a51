"""Numbers that the implementations share."""

from __future__ import annotations

from models.formats.elements import Element
from models.formats.random import mix_number


def carry(element: Element, mode: str) -> int:
    """What is added to the float32 bits of a block's amax so that a carry into the exponent makes floor's scale that of another
    mode."""
    if mode == "rceil":  # it carries above the fraction of the largest magnitude, which its code's mantissa is
        mantissa = element.largest_code & ((1 << element.mantissa_bits) - 1)
        return 0x7FFFFF - (mantissa << (23 - element.mantissa_bits))
    return {"floor": 0, "ceil": 0x7FFFFF, "even": 1 << (22 - element.mantissa_bits)}[mode]


def random_key(key: int) -> tuple[int, int]:
    """A 64-bit key as two signed 32-bit numbers: its lower half, and its upper half mixed, as `models.formats.random.bits` uses
    them."""
    halves = key & 0xFFFFFFFF, mix_number((key >> 32) & 0xFFFFFFFF)
    low, high = ((half ^ 0x80000000) - 0x80000000 for half in halves)
    return low, high
