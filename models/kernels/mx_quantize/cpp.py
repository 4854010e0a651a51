"""Calls of `kernel.cpp`: into every block format and back on a processor."""

from __future__ import annotations

import ctypes
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from models.formats.names import Format
from models.formats.quantize import Draw
from models.formats.scales import tensor_scale
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize.constants import random_key
from models.kernels.mx_quantize.element import ROUNDINGS, Element
from models.kernels.mx_quantize.places import sums
from models.kernels.mx_quantize.reference import divided, of_squares
from models.kernels.runtime.building import pointer
from models.kernels.runtime.cpp import library, seen_along
from models.kernels.runtime.rows import in_memory

SOURCE = Path(__file__).with_name("kernel.cpp")

_INFINITY = 0x7F800000
_NOWHERE = ctypes.c_void_p(None)


@torch.no_grad()
def quantize(
    x: Tensor, found: Format, dim: int, scale: str, rounding: str, square: bool, draw: Draw | None, whole: Tensor | None
) -> MXTensor:
    """`models.formats.quantize` of what is checked. dim: not negative. whole: the whole tensor's largest magnitude, or None."""
    places = None if draw is None else draw.lines(x.shape, x.device)
    x, laid = in_memory(x, dim)
    order = [*range(x.ndim)]
    order.insert(laid, order.pop(dim))
    shape = *seen_along(x, laid), ctypes.c_long(found.block)
    kernel, threads = library(SOURCE), torch.get_num_threads()
    amax = None
    nvfp4 = found.scale == "e4m3"
    if square or (nvfp4 and whole is None):
        amax = torch.empty(divided(x, laid, found), dtype=torch.int32)
        kernel.mx_largest(*shape, pointer(amax), threads)
        if square:
            amax = of_squares(amax, laid, found.block).contiguous()
    tensor = tensor_scale(_finite(amax) if whole is None else whole.to(torch.float32)) if nvfp4 else None
    size, others = x.shape[laid], [*x.shape[:laid], *x.shape[laid + 1 :]]
    elements = torch.empty((*others, size * found.element.bits // 8), dtype=torch.uint8)
    scales = torch.empty((*others, size // found.block), dtype=torch.uint8)
    drawn: tuple[ctypes.c_uint32 | ctypes.c_void_p, ...] = (ctypes.c_uint32(0),) * 2 + (_NOWHERE,) * 3
    if draw is not None and places is not None:
        lines = [sums([places[place] for place in part], x.device) for part in (order[:laid], [dim], order[laid + 1 :])]
        low, high = random_key(int(draw.key))
        drawn = (ctypes.c_uint32(low & 0xFFFFFFFF), ctypes.c_uint32(high & 0xFFFFFFFF), *map(pointer, lines))
    kernel.mx_quantize(
        *shape, Element.of(found.element.name, scale), ROUNDINGS[rounding], pointer(amax), pointer(tensor),
        *drawn, pointer(elements), pointer(scales), threads,
    )  # fmt: skip
    if square:
        scales = scales[..., :: found.block, :].contiguous()
    return MXTensor(elements, scales, found, dim, square, tensor)


def dequantize(mx: MXTensor, dtype: torch.dtype) -> Tensor:
    """`MXTensor.dequantize` to float32 or bfloat16, contiguous; bit for bit but for the payload of NaN."""
    elements, scales, element, shape = mx.elements.contiguous(), mx.scales.contiguous(), mx.format.element, mx.shape
    found = torch.empty(shape, dtype=dtype)
    sizes = prod(shape[: mx.dim]), shape[mx.dim], prod(shape[mx.dim + 1 :]), mx.format.block if mx.square else 1
    library(SOURCE).mx_dequantize(
        pointer(elements), pointer(scales), pointer(mx.tensor_scale), *map(ctypes.c_long, sizes),
        Element.of(element.name, "floor"), int(dtype == torch.bfloat16), pointer(found), torch.get_num_threads(),
    )  # fmt: skip
    return found


def _finite(amax: Tensor | None) -> Tensor:
    """The largest finite magnitude of blocks' largest, in bits: float32 scalar."""
    assert amax is not None
    return torch.where(amax >= _INFINITY, 0, amax).amax().view(torch.float32)
