"""Into MX and back: `models.formats.quantize` and `MXTensor.dequantize` at the speed of memory, bit for bit the same.

`quantize_both` makes of one tensor what both of its products need, along rows and along columns, reading it once. None of
these is differentiable: they are called within an autograd.Function, which knows the gradient it wants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.formats.quantize import Draw, checked
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize import cpp, decoding, reference
from models.kernels.mx_quantize.operators import dequantize_with, quantize_with
from models.kernels.registry import Kernel

KERNEL = Kernel("mx_quantize", gpu=("triton",), cpu=("cpp",), serves={"cuda": lambda device, dtype, shape: None})
"""`auto` takes Triton on a GPU; CUDA C++, which has as much, only where it is asked for, as long as no measurement says that it
is faster. On a processor it takes C++."""

_WHOLE = {"reference": reference.quantize, "cpp": cpp.quantize}
"""Those that no compiler takes for one operation."""


def quantize(
    x: Tensor,
    format: str,
    dim: int = -1,
    scale: str = "floor",
    rounding: str = "nearest_even",
    *,
    square: bool = False,
    draw: Draw | None = None,
    whole_amax: Tensor | None = None,
    kernels: str = "auto",
) -> MXTensor:
    """x in a block format: `models.formats.quantize`, whose arguments these are, by the implementation `kernels` asks for.

    Elements and scales are contiguous. ModelError as there.
    """
    found = checked(x, format, dim, scale, rounding, square, draw)
    dim %= x.ndim
    draw = draw if rounding == "stochastic" else None
    chosen = _chosen(kernels, x)
    if chosen in _WHOLE:
        return _WHOLE[chosen](x, found, dim, scale, rounding, square, draw, whole_amax)
    formats = (format, None) if dim == x.ndim - 1 else (None, format)
    ((elements, scales, tensor),) = quantize_with(chosen, x, formats, dim, scale, rounding, square, draw, whole_amax)
    return MXTensor(elements, scales, found, dim, square, tensor if found.scale == "e4m3" else None)


def quantize_both(
    x: Tensor,
    format_row: str,
    format_column: str,
    scale: str = "floor",
    rounding: str = "nearest_even",
    *,
    draw: Draw | None = None,
    whole_amax: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[MXTensor, MXTensor]:
    """(x in format_row, blocked along the last dimension; x in format_column, blocked along the first), x [S, ..., H] of at
    least two dimensions, read once. With stochastic rounding both draw the same numbers."""
    row = checked(x, format_row, -1, scale, rounding, False, draw)
    column = checked(x, format_column, 0, scale, rounding, False, draw)
    draw = draw if rounding == "stochastic" else None
    chosen = "reference" if x.ndim < 2 else _chosen(kernels, x)
    last = x.ndim - 1
    if chosen in _WHOLE:
        first = _WHOLE[chosen](x, row, last, scale, rounding, False, draw, whole_amax)
        return first, _WHOLE[chosen](x, column, 0, scale, rounding, False, draw, whole_amax)
    made = quantize_with(chosen, x, (format_row, format_column), 0, scale, rounding, False, draw, whole_amax)
    (r, r_scales, r_tensor), (c, c_scales, c_tensor) = made
    return (
        MXTensor(r, r_scales, row, last, False, r_tensor if row.scale == "e4m3" else None),
        MXTensor(c, c_scales, column, 0, False, c_tensor if column.scale == "e4m3" else None),
    )


def dequantize(mx: MXTensor, dtype: torch.dtype = torch.float32, kernels: str = "auto") -> Tensor:
    """`mx.dequantize(dtype)`: of the tensor's shape, in float32, bfloat16 or float16. Contiguous where a kernel ran."""
    chosen = KERNEL.choose(kernels, mx.elements)
    if chosen in ("reference", "cuda") or dtype not in (torch.float32, torch.bfloat16):
        return decoding.dequantize(mx, dtype)
    return cpp.dequantize(mx, dtype) if chosen == "cpp" else dequantize_with(mx, dtype)


def _chosen(kernels: str, x: Tensor) -> str:
    """The implementation. Of nothing there is nothing to build or to launch."""
    return KERNEL.choose(kernels, x) if x.numel() else "reference"


__all__ = ["KERNEL", "dequantize", "quantize", "quantize_both"]
