"""Where elements stand in the whole tensor, for kernels that look at a tensor in fewer dimensions than it has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.formats.quantize import Draw
from models.keys import signed


def sums(lines: Sequence[Tensor], device: torch.device) -> Tensor:
    """Sums of one number of each line, in row-major order: int64 [product of extents], one 0 of none."""
    total = torch.zeros(1, dtype=torch.int64, device=device)
    for line in lines:
        total = (total[:, None] + line).flatten()
    return total


def key_on(draw: Draw, device: torch.device) -> Tensor:
    """The key as an int64 scalar; one that is a number waits for nothing."""
    if isinstance(draw.key, Tensor):
        return draw.key.to(device)
    return torch.full((), signed(draw.key), dtype=torch.int64, device=device)
