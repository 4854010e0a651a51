"""Calls of `kernel.cu`: into every block format on a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.formats.names import Format, format_of
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
    found = {place: format_of(name) for place, name in enumerate(formats) if name}
    made = {place: storage(x, one.name, (x.ndim - 1, dim)[place], square) for place, one in found.items()}
    call = _Call(matrices, found, scale, ROUNDINGS[rounding], square)
    for place, one in found.items():
        if one.scale == "e4m3":
            amax = call.largest(place, made[place]) if whole is None else whole.to(torch.float32)
            made[place] = (*made[place][:2], tensor_scale(amax))
    if x.numel():
        call.quantize(made, drawn)
    return list(made.values())


@dataclass(frozen=True)
class _Call:
    """What all launches for a tensor are told. formats: of 0 along rows, of 1 along columns."""

    matrices: Matrices
    formats: dict[int, Format]
    scale: str
    rounding: int
    square: bool

    def largest(self, place: int, parts: Parts) -> Tensor:
        """The largest finite magnitude among blocks' largest, float32 scalar. parts: of which only the shapes matter."""
        elements, scales, one = parts
        found = torch.zeros_like(one)  # as bits of a magnitude
        if elements.numel():
            self._launch({place: (elements, scales, torch.ones_like(one))}, None, found)
        return found

    def quantize(self, made: dict[int, Parts], drawn: tuple[Tensor, list[Tensor], bool] | None) -> None:
        """Fill elements and scales."""
        lines = None
        if drawn is not None:
            key, places, _ = drawn
            dims, device = self.matrices.dims, self.matrices.x.device
            lines = key, sums(places[:dims], device), sums(places[dims:], device)
        self._launch(made, lines, None)

    def _launch(
        self, made: dict[int, Parts], lines: tuple[Tensor, Tensor, Tensor] | None, found: Tensor | None
    ) -> None:
        """One for every matrix. lines: the key, and places of rows, those of all matrices one after another, and columns."""
        m = self.matrices
        function = library(SOURCE, architecture_of(m.x.device)).mx_quantize
        sizes = [ctypes.c_long(size) for size in (m.rows, m.columns, m.row_stride)]
        for batch in range(m.batches):
            towards = [Made(), Made()]
            for place, (elements, scales, whole) in made.items():
                parts = (part.view(m.batches, -1)[batch].data_ptr() for part in (elements, scales))
                element = Element.of(self.formats[place].element.name, self.scale)
                towards[place] = Made(element, whole.data_ptr() if whole.numel() else None, *parts)
            draw = Draw()
            if lines is not None:
                key, rows, columns = lines
                draw = Draw(key.data_ptr(), rows[batch * m.rows :].data_ptr(), columns.data_ptr())
            start = ctypes.c_void_p(m.x.data_ptr() + batch * m.batch_stride * m.x.itemsize)
            code = function(
                start, INPUTS[m.x.dtype], *sizes, self.rounding, int(self.square), draw, *towards, pointer(found),
                stream(m.x.device),
            )  # fmt: skip
            check(code, "mx_quantize")
