"""Rotary positions of all query heads, [T, 1, heads, 128]: read and written, forward and backward."""

from __future__ import annotations

import torch

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable
from models.kernels.rotary import rotate

WIDTH = 128


def rotary(sizes: Sizes, place: Place) -> list[Pass]:
    """Angles are [T, 1, 1, 128] and count little."""
    T, heads = sizes.tokens, sizes.hidden // WIDTH
    moved = 2 * T * sizes.hidden * place.item
    frequencies = 10000.0 ** (-torch.arange(0, WIDTH, 2, device=place.device) / WIDTH)
    angles = (torch.arange(T, device=place.device)[:, None] * frequencies).view(T, 1, 1, WIDTH // 2)
    cosine, sine = angles.cos().repeat(1, 1, 1, 2), torch.cat([-angles.sin(), angles.sin()], -1)
    return differentiable(
        "rotary",
        lambda x, kernels: rotate(x, cosine, sine, kernels),
        lambda: (place.noise(T, 1, heads, WIDTH),),
        place,
        moved=(moved, moved),
        goals=(0.9, 0.9),
    )
