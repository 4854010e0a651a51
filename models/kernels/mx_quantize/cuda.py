"""Calls of `kernel.cu`: MX, not NVFP4, without squares and stochastic rounding."""

from __future__ import annotations

import ctypes
from math import prod
from pathlib import Path

from torch import Tensor

from models.formats.names import format_of
from models.kernels.mx_quantize.element import Element
from models.kernels.mx_quantize.operators import Parts, storage
from models.kernels.runtime.building import INPUTS, pointer
from models.kernels.runtime.cuda import architecture_of, check, library, stream

SOURCE = Path(__file__).parent / "kernel.cu"


def quantize(x: Tensor, formats: tuple[str | None, str | None], dim: int, scale: str, rounding: str) -> list[Parts]:
    """x in formats[0] along its last dimension, in formats[1] along `dim`; None for what is not wanted."""
    row, column = formats
    if x.ndim != 2 or x.stride(1) != 1:
        x = x.contiguous()
    made = {place: storage(x, name, (x.ndim - 1, dim)[place], False) for place, name in enumerate(formats) if name}
    if x.numel():
        first = prod(x.shape[:-1]) if column is None else x.shape[dim]
        batches = 1 if column is None else prod(x.shape[:dim])
        columns = x.numel() // (first * batches)
        step = x.stride(0) if x.ndim == 2 else columns
        f, t = (format_of(name or row or column or "").element.name for name in formats)
        function = library(SOURCE, architecture_of(x.device)).mx_quantize
        for batch in range(batches):
            parts = [part[batch] for part in _batches(made, batches)]
            check(
                function(
                    pointer(x if batches == 1 else x.view(batches, -1)[batch]), INPUTS[x.dtype], ctypes.c_long(first),
                    ctypes.c_long(columns), ctypes.c_long(step), int(rounding == "half_away"), Element.of(f, scale),
                    *map(pointer, parts[:2]), Element.of(t, scale), *map(pointer, parts[2:]), stream(x.device),
                ),
                "mx_quantize",
            )  # fmt: skip
    return list(made.values())


def _batches(made: dict[int, Parts], batches: int) -> list[Tensor | list[None]]:
    """Elements and scales along rows, then along columns, by batch; None for what is not there."""
    found: list[Tensor | list[None]] = []
    for place in (0, 1):
        parts = made.get(place)
        found += [[None] * batches] * 2 if parts is None else [part.view(batches, -1) for part in parts[:2]]
    return found
