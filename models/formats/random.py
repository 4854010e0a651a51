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


def line_bits(key: int | Tensor, lines: tuple[Tensor, ...]) -> Tensor | None:
    """`bits` of places that are sums of one number, int64 [extent], of every dimension: int32 with the same 32 bits, in a
    fraction of the time, since most of the mixing is of lower halves that few dimensions decide. None where the lower halves
    of the numbers may carry; waits for the device."""
    lows, highs = [line & _MASK for line in lines], [line >> 32 for line in lines]
    if sum(int(low.max()) for low in lows if low.numel()) > _MASK:
        return None
    key = int(key) & ~(-1 << 64)
    low = mix32(_outer(lows) ^ _as_int32(key & _MASK))
    high = _mix(_outer([high & _MASK for high in highs]).to(torch.int64) & _MASK) ^ mix_number(key >> 32)
    return mix32(low ^ high.to(torch.int32))


def _outer(lines: list[Tensor]) -> Tensor:
    """Sums of one number of every dimension, int32 that wraps; of extent 1 where all of a dimension's are 0."""
    dims, total = len(lines), torch.zeros((1,) * len(lines), dtype=torch.int32, device=lines[0].device)
    for dim, line in enumerate(lines):
        if line.any():
            total = total + line.to(torch.int32).reshape([-1 if place == dim else 1 for place in range(dims)])
    return total


def mix32(x: Tensor) -> Tensor:
    """The mixer on int32, which wraps; consumes x."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(_MIX1)
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(_MIX2)
    return x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF))


def _as_int32(x: int) -> int:
    return (x ^ 0x80000000) - 0x80000000


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * _MIX1) & _MASK
    x = ((x ^ (x >> 15)) * _MIX2) & _MASK
    return x ^ (x >> 15)


def mix_number(x: int) -> int:
    """The mixer of a number below 2^32, for kernels that are handed a key."""
    return int(_mix(torch.tensor(x, dtype=torch.int64)))
