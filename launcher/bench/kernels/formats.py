"""MX quantisation of [T, H]: along rows, along both dimensions of one reading, and back; rotation along both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from launcher.bench.kernels.record import COMPILED, Pass, Place, Sizes, eager_ways
from models.kernels.hadamard import random_signs, rotate
from models.kernels.mx_quantize import dequantize, quantize, quantize_both

FORMAT, SCALE = "mxfp8_e4m3", "rceil"
GROUP = 32
STORED = 1 + 1 / 32  # bytes of an element with its share of a scale


def mx_quantize(sizes: Sizes, place: Place) -> list[Pass]:
    """Reading x once and writing one byte and a thirty-second for each element and copy; backwards the reverse."""
    x = place.noise(sizes.tokens, sizes.hidden)
    count, ways = x.numel(), eager_ways("mx_quantize", place)

    def row(kernels: str) -> tuple[Tensor, ...]:
        found = quantize(x, FORMAT, -1, SCALE, kernels=kernels)
        return found.elements, found.scales

    def both(kernels: str) -> tuple[Tensor, ...]:
        found = quantize_both(x, FORMAT, FORMAT, SCALE, kernels=kernels)
        return tuple(tensor for one in found for tensor in (one.elements, one.scales))

    packed = quantize(x, FORMAT, -1, SCALE, kernels="reference")

    def back(kernels: str) -> Tensor:
        return dequantize(packed, place.dtype, kernels)

    return [
        _one("row", row, ways, (place.item + STORED) * count, 0.85),
        _one("row and column", both, ways, (place.item + 2 * STORED) * count, 0.8),
        _one("back", back, ways, (STORED + place.item) * count, 0.85),
    ]


def hadamard(sizes: Sizes, place: Place) -> list[Pass]:
    """Reading x and writing it in float32, groups of 32 along features or along tokens."""
    x, signs = place.noise(sizes.tokens, sizes.hidden), random_signs(1, GROUP).to(place.device)
    ways, moved = eager_ways("hadamard", place), (place.item + 4) * x.numel()

    def along(dim: int, kernels: str) -> Tensor:
        return rotate(x, dim, GROUP, signs, kernels)

    return [_one(name, partial(along, dim), ways, moved, 0.85) for name, dim in (("features", 1), ("tokens", 0))]


def _one(name: str, call: Callable[[str], object], ways: dict[str, str], moved: float, goal: float) -> Pass:
    """A call under each way of `kernels=`, and torch's compilation of the reference."""
    calls = {way: partial(call, choice) for way, choice in ways.items()}
    compiled = torch.compile(call, dynamic=False)
    return Pass(name, calls | {COMPILED: partial(compiled, "reference")}, moved, goal=goal)
