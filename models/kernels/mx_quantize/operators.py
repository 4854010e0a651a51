"""Quantise and dequantise as opaque operators on plain tensors, which a compiler passes over."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from models.formats.names import format_of
from models.formats.packing import GROUP
from models.formats.quantize import Draw
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize.places import key_on

Parts = tuple[Tensor, Tensor, Tensor]
"""Elements, scales, the tensor's scale: float32, empty but for NVFP4."""


def quantize_with(
    implementation: str, x: Tensor, formats: tuple[str | None, str | None], dim: int, scale: str, rounding: str,
    square: bool, draw: Draw | None, whole: Tensor | None,
) -> list[Parts]:  # fmt: skip
    """x along its last dimension in formats[0] and along `dim` in formats[1], None for what is not wanted."""
    key, lines = (None, ()) if draw is None else (key_on(draw, x.device), draw.lines(x.shape, x.device))
    wide = draw is not None and (bool(draw.places) or prod(draw.shape or x.shape) > 1 << 32)
    made = _quantize(
        implementation,
        x,
        formats[0] or "",
        formats[1] or "",
        dim,
        scale,
        rounding,
        square,
        key,
        list(lines),
        wide,
        whole,
    )
    return [(made[place], made[place + 1], made[place + 2]) for place in range(0, len(made), 3)]


@torch.library.custom_op("triaxis::mx_quantize", mutates_args=())
def _quantize(
    implementation: str, x: Tensor, row: str, column: str, dim: int, scale: str, rounding: str, square: bool,
    key: Tensor | None, lines: list[Tensor], wide: bool, whole: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    formats = (row or None, column or None)
    drawn = None if key is None else (key, lines, wide)
    if implementation == "cuda":
        from models.kernels.mx_quantize.cuda import quantize
    else:
        from models.kernels.mx_quantize.triton import quantize

    made = quantize(x, formats, dim, scale, rounding, square, drawn, whole)
    return [part for stored in made for part in stored]


@_quantize.register_fake
def _(implementation, x, row, column, dim, scale, rounding, square, key, lines, wide, whole):
    made: list[Tensor] = []
    for name, along in ((row, x.ndim - 1), (column, dim)):
        if name:
            made += storage(x, name, along, square)
    return made


def storage(x: Tensor, name: str, dim: int, square: bool) -> Parts:
    """Fresh tensors for x in a format, blocked along `dim`, not negative."""
    found = format_of(name)
    count, size = GROUP[found.element.bits]
    others = [*x.shape[:dim], *x.shape[dim + 1 :]]
    beside = [*others[:-1], others[-1] // found.block] if square else others
    elements = x.new_empty((*others, x.shape[dim] * size // count), dtype=torch.uint8)
    scales = x.new_empty((*beside, x.shape[dim] // found.block), dtype=torch.uint8)
    return elements, scales, x.new_empty(() if found.scale == "e4m3" else (0,), dtype=torch.float32)


def dequantize_with(mx: MXTensor, dtype: torch.dtype) -> Tensor:
    """The values, contiguous."""
    return _dequantize(mx.elements, mx.scales, mx.tensor_scale, mx.format.name, mx.dim, mx.square, dtype)


@torch.library.custom_op("triaxis::mx_dequantize", mutates_args=())
def _dequantize(
    elements: Tensor, scales: Tensor, whole: Tensor | None, format: str, dim: int, square: bool, dtype: torch.dtype
) -> Tensor:
    from models.kernels.mx_quantize import triton

    mx = MXTensor(elements, scales, format_of(format), dim, square, whole)
    return triton.dequantize(mx, dtype)


@_dequantize.register_fake
def _(elements, scales, whole, format, dim, square, dtype):
    shape = MXTensor(elements, scales, format_of(format), dim, square, whole).shape
    return elements.new_empty(shape, dtype=dtype)
