"""Elements of 4 and 6 bits in whole bytes, the first element in the lowest bits, as little-endian machines read them."""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ModelError

GROUP = {4: (2, 1), 6: (4, 3), 8: (1, 1)}
"""By bits: elements that fill whole bytes together, and how many bytes."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [..., n], each below 2^bits, as uint8 [..., n * bits / 8]. ModelError where n fills no whole bytes."""
    elements, count = GROUP[bits]
    if bits == 8:
        return codes
    if codes.shape[-1] % elements:
        raise ModelError(
            f"{codes.shape[-1]} elements of {bits} bits fill no whole bytes: their number must be a multiple of {elements}"
        )
    groups = codes.unflatten(-1, (codes.shape[-1] // elements, elements)).to(torch.int32)
    word = sum(groups[..., place] << (bits * place) for place in range(elements))
    found = torch.stack([(word >> (8 * byte)) & 0xFF for byte in range(count)], -1)  # type: ignore[operator]
    return found.to(torch.uint8).flatten(-2)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes again, uint8 [..., n]."""
    elements, count = GROUP[bits]
    if bits == 8:
        return packed
    groups = packed.unflatten(-1, (packed.shape[-1] // count, count)).to(torch.int32)
    word = sum(groups[..., byte] << (8 * byte) for byte in range(count))
    mask = (1 << bits) - 1
    found = torch.stack([(word >> (bits * place)) & mask for place in range(elements)], -1)  # type: ignore[operator]
    return found.to(torch.uint8).flatten(-2)
