"""Tokens [T, H] to the order of their experts and back, two experts of eight a token, evenly drawn."""

from __future__ import annotations

import torch

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable
from models.kernels.moe_permute import order_of, permute, unpermute

EXPERTS, TOP_K = 8, 2
GOALS = (0.85, 0.85)


def moe_permute(sizes: Sizes, place: Place) -> list[Pass]:
    """Permuting reads each token and writes its copies; unpermuting the other way, and backward of each likewise, but that
    weights' gradients read the results once more."""
    T, H = sizes.tokens, sizes.hidden
    one = T * H * place.item
    chosen = torch.rand(T, EXPERTS, device=place.device).topk(TOP_K).indices
    order = order_of(chosen, None, EXPERTS)
    there = differentiable(
        "moe_permute",
        lambda tokens, kernels: permute(tokens, order, kernels),
        lambda: (place.noise(T, H),),
        place,
        moved=((1 + TOP_K) * one, (1 + TOP_K) * one),
        goals=GOALS,
    )
    back = differentiable(
        "moe_permute",
        lambda results, weights, kernels: unpermute(results, weights, order, kernels),
        lambda: (place.noise(T * TOP_K, H), torch.rand(T, TOP_K, device=place.device, dtype=place.dtype)),
        place,
        moved=((1 + TOP_K) * one, (1 + 2 * TOP_K) * one),
        goals=GOALS,
    )
    for name, passes in (("there", there), ("back", back)):
        for each in passes:
            each.name = f"{name}, {each.name}"
    return there + back
