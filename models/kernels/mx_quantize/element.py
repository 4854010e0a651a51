"""An element format as `arithmetic.h` is told of it."""

from __future__ import annotations

import ctypes

from models.formats.elements import ELEMENTS
from models.kernels.mx_quantize.constants import carry

ROUNDINGS = {"nearest_even": 0, "half_away": 1, "stochastic": 2}


class Element(ctypes.Structure):
    """The file's `Element`."""

    _fields_ = [
        (name, ctypes.c_int) for name in ("bits", "mantissa", "smallest", "exponent", "largest", "integer", "carry")
    ]

    @classmethod
    def of(cls, name: str, mode: str) -> Element:
        """An element format of `ELEMENTS` under a scale mode."""
        e = ELEMENTS[name]
        smallest = e.smallest_exponent + 127
        return cls(e.bits, e.mantissa_bits, smallest, e.largest_exponent, e.largest_code, e.integer, carry(e, mode))
