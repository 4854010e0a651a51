"""RMSNorm and LayerNorm of [T, H], alone and of a residual stream that a branch is added to."""

from __future__ import annotations

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable
from models.kernels.layer_norm import layer_norm as plain_layer_norm
from models.kernels.rms_norm import add_rms_norm
from models.kernels.rms_norm import rms_norm as plain_rms_norm

EPS = 1e-5
GOALS = (0.95, 0.85)


def rms_norm(sizes: Sizes, place: Place) -> list[Pass]:
    """Forward reads x and writes y; backward reads the upstream gradient and x, and writes x's. With a residual each has one
    more to read, and forward one more to write."""
    T, H = sizes.tokens, sizes.hidden
    moved = T * H * place.item
    alone = differentiable(
        "rms_norm",
        lambda x, weight, kernels: plain_rms_norm(x, weight, EPS, kernels),
        lambda: (place.noise(T, H), place.noise(H)),
        place,
        moved=(2 * moved, 3 * moved),
        goals=GOALS,
        liger=True,
    )
    added = differentiable(
        "rms_norm",
        lambda x, residual, weight, kernels: add_rms_norm(x, residual, weight, EPS, kernels),
        lambda: (place.noise(T, H), place.noise(T, H), place.noise(H)),
        place,
        moved=(4 * moved, 4 * moved),
        goals=GOALS,
    )
    for one in added:
        one.name += ", residual"
    return alone + added


def layer_norm(sizes: Sizes, place: Place) -> list[Pass]:
    """As RMSNorm."""
    T, H = sizes.tokens, sizes.hidden
    moved = T * H * place.item
    return differentiable(
        "layer_norm",
        lambda x, weight, bias, kernels: plain_layer_norm(x, weight, bias, EPS, kernels),
        lambda: (place.noise(T, H), place.noise(H), place.noise(H)),
        place,
        moved=(2 * moved, 3 * moved),
        goals=GOALS,
        liger=True,
    )
