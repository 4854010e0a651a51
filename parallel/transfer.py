"""What the host sends to its device."""

from __future__ import annotations

import torch
from torch import Tensor


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on a device. To a GPU it goes from pinned memory and nobody waits: a copy from pageable memory has the host wait until
    the GPU has done all that it was given, and meanwhile nothing more is given to it."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
