"""Cross entropy of logits [T, V], and of an output head without its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable
from models.kernels.cross_entropy import cross_entropy as plain_cross_entropy
from models.kernels.linear_cross_entropy import linear_cross_entropy as plain_linear_cross_entropy

WITHIN_PRODUCTS = 1 / 1.1
"""The goal: at most 1.1 times its three products."""

FEWER = 4
"""Of the tokens, that logits are made for: those of all, and their gradients, do not fit beside one another on an 80 GB GPU."""


def _targets(sizes: Sizes, place: Place, tokens: int) -> Tensor:
    return torch.randint(sizes.vocabulary, (tokens,), device=place.device)


def cross_entropy(sizes: Sizes, place: Place) -> list[Pass]:
    """Forward reads the logits; backward reads them and writes their gradient."""
    T, V = max(1, sizes.tokens // FEWER), sizes.vocabulary
    moved = T * V * place.item
    targets = _targets(sizes, place, T)
    return differentiable(
        "cross_entropy",
        lambda logits, kernels: plain_cross_entropy(logits, targets, kernels=kernels),
        lambda: (place.noise(T, V),),
        place,
        moved=(moved, 2 * moved),
        goals=(0.9, 0.9),
    )


def linear_cross_entropy(sizes: Sizes, place: Place) -> list[Pass]:
    """Losses and both gradients, which are three products; forward makes the gradients for a mean, so the two are one pass."""
    T, H, V = sizes.tokens, sizes.hidden, sizes.vocabulary
    targets = _targets(sizes, place, T).view(T, 1)
    weights = torch.full((T, 1), 1 / T, device=place.device)

    def both(x: Tensor, weight: Tensor, kernels: str) -> tuple[Tensor, ...]:
        losses = plain_linear_cross_entropy(x, weight, targets, weights=weights, kernels=kernels)
        return torch.autograd.grad((losses * weights).sum(), (x, weight))

    found = differentiable(
        "linear_cross_entropy",
        both,
        lambda: (place.noise(T, 1, H), place.noise(V, H) * H**-0.5),
        place,
        moved=(0.0, 0.0),
        goals=(WITHIN_PRODUCTS, None),
        flops=(3 * 2.0 * T * H * V, 0.0),
        backward=False,
    )
    return found
