"""Calls of `kernel.cu`: into every block format on a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.formats.names import format_of
from models.formats.scales import tensor_scale
from models.kernels.mx_quantize.element import ROUNDINGS, Element
from models.kernels.mx_quantize.matrices import Matrices, matrices_of
from models.kernels.mx_quantize.operators import Parts, storage
from models.kernels.mx_quantize.places import sums
from models.kernels.runtime.building import INPUTS, pointer
from models.kernels.runtime.cuda import architecture_of, check, library, stream

SOURCE = Path(__file__).parent / "kernel.cu"


class Made(ctypes.Structure):
    """The file's `Made`."""

    _fields_ = [("element", Element), *((name, ctypes.c_void_p) for name in ("whole", "elements", "scales"))]


class Draw(ctypes.Structure):
    """The file's `Draw`."""

    _fields_ = [(name, ctypes.c_void_p) for name in ("key", "rows", "columns")]


def quantize(
    x: Tensor, formats: tuple[str | None, str | None], dim: int, scale: str, rounding: str, square: bool,
    drawn: tuple[Tensor, list[Tensor], bool] | None, whole: Tensor | None,
) -> list[Parts]:  # fmt: skip
    """See `models.kernels.mx_quantize.triton.quantize`."""
    matrices = matrices_of(x, formats, dim)
    places = [place for place, name in enumerate(formats) if name]
    made = {place: storage(x, formats[place] or "", (x.ndim - 1, dim)[place], square) for place in places}
    how = ROUNDINGS[rounding], int(square)
    for place in places:
        name = formats[place] or ""
        if format_of(name).scale == "e4m3":
            elements, scales, one = made[place]
            amax = torch.zeros_like(one) if whole is None else whole.to(torch.float32)
            if whole is None and x.numel():
                towards = {place: (elements, scales, torch.ones_like(one))}
                _call(matrices, {place: name}, towards, scale, how, None, amax)
            made[place] = elements, scales, tensor_scale(amax)
    if x.numel():
        lines = None
        if drawn is not None:
            key, all_lines, _ = drawn
            lines = key, *(sums(part, x.device) for part in (all_lines[: matrices.dims], all_lines[matrices.dims :]))
        _call(matrices, {place: formats[place] or "" for place in places}, made, scale, how, lines, None)
    return list(made.values())


def _call(
    m: Matrices, names: dict[int, str], made: dict[int, Parts], scale: str, how: tuple[int, int],
    drawn: tuple[Tensor, Tensor, Tensor] | None, found: Tensor | None,
) -> None:  # fmt: skip
    """A launch for every matrix. made: of 0 along rows, of 1 along columns; found: instead, the largest finite magnitude."""
    function = library(SOURCE, architecture_of(m.x.device)).mx_quantize
    for batch in range(m.batches):
        towards = [Made(Element.of(format_of(next(iter(names.values()))).element.name, scale)) for _ in range(2)]
        for place, (elements, scales, whole) in made.items():
            parts = [part.view(m.batches, -1)[batch] for part in (elements, scales)]
            element = Element.of(format_of(names[place]).element.name, scale)
            towards[place] = Made(element, _address(whole) if whole.numel() else None, *map(_address, parts))
        draw = Draw()
        if drawn is not None:
            key, rows, columns = drawn
            draw = Draw(_address(key), _address(rows[batch * m.rows :]), _address(columns))
        start = ctypes.c_void_p(m.x.data_ptr() + batch * m.batch_stride * m.x.itemsize)
        sizes = map(ctypes.c_long, (m.rows, m.columns, m.row_stride))
        code = function(start, INPUTS[m.x.dtype], *sizes, *how, draw, *towards, pointer(found), stream(m.x.device))
        check(code, "mx_quantize")


def _address(x: Tensor) -> Any:
    return x.data_ptr()
