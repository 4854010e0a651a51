"""SwiGLU, squared ReLU and PolyNorm of [T, F]."""

from __future__ import annotations

from launcher.bench.kernels.record import Pass, Place, Sizes, differentiable
from models.kernels.gated import gated as plain_gated
from models.kernels.poly_norm import poly_norm as plain_poly_norm
from models.kernels.squared_relu import squared_relu as plain_squared_relu

EPS = 1e-6


def gated(sizes: Sizes, place: Place) -> list[Pass]:
    """SwiGLU of gate and up side by side: forward reads two and writes one, backward reads three and writes two."""
    T, F = sizes.tokens, sizes.features
    moved = T * F * place.item
    return differentiable(
        "gated",
        lambda x, kernels: plain_gated(x, "silu", kernels),
        lambda: (place.noise(T, 2 * F),),
        place,
        moved=(3 * moved, 5 * moved),
        goals=(0.92, 0.88),
        liger=True,
    )


def squared_relu(sizes: Sizes, place: Place) -> list[Pass]:
    """Forward reads one and writes one, backward reads two and writes one."""
    T, F = sizes.tokens, sizes.features
    moved = T * F * place.item
    return differentiable(
        "squared_relu",
        plain_squared_relu,
        lambda: (place.noise(T, F),),
        place,
        moved=(2 * moved, 3 * moved),
        goals=(0.9, 0.9),
        liger=True,
    )


def poly_norm(sizes: Sizes, place: Place) -> list[Pass]:
    """As squared ReLU, where a row is held while its means are taken."""
    T, F = sizes.tokens, sizes.features
    moved = T * F * place.item
    return differentiable(
        "poly_norm",
        lambda x, weight, bias, kernels: plain_poly_norm(x, weight, bias, EPS, kernels),
        lambda: (place.noise(T, F), place.noise(3), place.noise(1)),
        place,
        moved=(2 * moved, 3 * moved),
        goals=(0.85, 0.85),
        liger=True,
    )
