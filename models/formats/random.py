"""Random bits for stochastic rounding, as a function of (key, place in the whole tensor): the same at every layout and on
every device."""

from __future__ import annotations

import torch
from torch import Tensor

from models.keys import signed

_MASK = 0xFFFFFFFF
_MIX1, _MIX2 = 0x21F0AAAD, 0x735A2D97
"""Of the best 32-bit mixer with two multiplications that Wellons' search has found (2022, `lowbias32`'s successor)."""


def bits(key: int | Tensor, index: Tensor) -> Tensor:
    """32 random bits in int64 for each global index, int64, any shape. The key, a number or an int64 scalar, and the index's
    upper half enter between two rounds of mixing, so that tensors of more than 2^32 elements do not repeat."""
    key = key if isinstance(key, Tensor) else torch.tensor(signed(key), dtype=torch.int64)
    low, high = index & _MASK, (index >> 32) & _MASK
    found = _mix(low ^ (key & _MASK))
    return _mix(found ^ _mix((key >> 32) & _MASK) ^ _mix(high))


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * _MIX1) & _MASK
    x = ((x ^ (x >> 15)) * _MIX2) & _MASK
    return x ^ (x >> 15)


def mix_number(x: int) -> int:
    """The mixer of a number below 2^32, for kernels that are handed a key."""
    return int(_mix(torch.tensor(x, dtype=torch.int64)))
