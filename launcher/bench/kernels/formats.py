"""MX quantisation of [T, H]: along rows, along both dimensions of one reading, and back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from launcher.bench.kernels.record import COMPILED, Pass, Place, Sizes, eager_ways
from models.kernels.mx_quantize import dequantize, quantize, quantize_both

FORMAT, SCALE = "mxfp8_e4m3", "rceil"
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

    def one(name: str, call: Callable[[str], object], moved: float, goal: float) -> Pass:
        calls = {way: partial(call, choice) for way, choice in ways.items()}
        compiled = torch.compile(call, dynamic=False)
        return Pass(name, calls | {COMPILED: partial(compiled, "reference")}, moved * count, goal=goal)

    return [
        one("row", row, place.item + STORED, 0.85),
        one("row and column", both, place.item + 2 * STORED, 0.8),
        one("back", back, STORED + place.item, 0.85),
    ]
