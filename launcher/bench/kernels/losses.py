"""Cross entropy of logits [T, V], and of an output head without its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable, in_products
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
    """The mean loss and its gradients: three products, since forward, told what losses will be multiplied by, makes them."""
    T, H, V = sizes.tokens, sizes.hidden, sizes.vocabulary
    targets = _targets(sizes, place, T)
    weights = torch.full((T, 1), 1 / T, device=place.device)

    def mean(x: Tensor, weight: Tensor, kernels: str) -> Tensor:
        losses = plain_linear_cross_entropy(x, weight, targets.view(T, 1), weights=weights, kernels=kernels)
        return (losses * weights).sum()

    def liger(x: Tensor, weight: Tensor) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(x.view(T, H), weight, targets)

    return in_products(
        "linear_cross_entropy",
        mean,
        lambda: (place.noise(T, 1, H), place.noise(V, H) * H**-0.5),
        place,
        flops=3 * 2.0 * T * H * V,
        goal=WITHIN_PRODUCTS,
        liger=liger,
    )
