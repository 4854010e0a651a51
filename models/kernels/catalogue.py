"""The kernels by name, each a folder of this package."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from models.kernels.runtime.compiling import Compilation

KERNELS: tuple[str, ...] = (
    "rms_norm",
    "layer_norm",
    "gated",
    "squared_relu",
    "poly_norm",
    "rotary",
    "cross_entropy",
    "linear_cross_entropy",
    "moe_permute",
    "mx_quantize",
    "hadamard",
    "adamw",
)
"""Folders with `reference.py`, `triton.py` and, some, `kernel.cu` or `kernel.cpp`."""

CUDA: tuple[str, ...] = ("adamw", "mx_quantize")
"""Those with a `kernel.cu`."""

CPP: tuple[str, ...] = ("mx_quantize", "hadamard")
"""Those with a `kernel.cpp`."""


def compilations(name: str) -> Iterator[Compilation]:
    """What `triton.py` of a kernel is compiled for when no GPU is at hand."""
    yield from import_module(f"models.kernels.{name}.triton").compilations()
