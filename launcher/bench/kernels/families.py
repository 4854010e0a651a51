"""Which file describes which kernel of the catalogue."""

from __future__ import annotations

from importlib import import_module

from launcher.bench.kernels.record import Make
from models.kernels.catalogue import KERNELS

_FAMILIES = {
    "adamw": "adamw",
    "rms_norm": "norms",
    "layer_norm": "norms",
    "gated": "activations",
    "squared_relu": "activations",
    "poly_norm": "activations",
    "rotary": "rotary",
    "cross_entropy": "losses",
    "linear_cross_entropy": "losses",
    "moe_permute": "routing",
    "mx_quantize": "formats",
    "hadamard": "formats",
}


def known() -> list[str]:
    """Kernels of the catalogue in its order."""
    return list(KERNELS)


def maker(name: str) -> Make:
    """What makes the passes of a kernel: a function of that name in its family's file."""
    found: Make = getattr(import_module(f"launcher.bench.kernels.{_FAMILIES[name]}"), name)
    return found
