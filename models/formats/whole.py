"""FP8 with one scale for a row of a product or for a whole tensor: elements of E4M3 or E5M2 under a power of two.

The scale is the smallest power of two with which nothing saturates, so values are exact in bfloat16 and the product of two such
tensors is a bfloat16 product of what they stand for. (FP8 formats: arXiv 2209.05433; a power of two is what DeepSeek-V3, arXiv
2412.19437, section 3.3, and the row-wise recipes in use round their scales to.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.elements import ELEMENTS
from models.formats.names import Format
from models.formats.scales import BIAS, NAN, power, shared_exponent
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize.encoding import encode

WHOLE = {name: Format(name, ELEMENTS[name[4:]], 0, "e8m0") for name in ("fp8_e4m3", "fp8_e5m2")}
"""Formats without blocks."""

NATIVE = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""torch's dtypes of elements."""

Largest = Callable[[Tensor], Tensor]
"""Of magnitudes that this process knows, what all that hold parts of the same tensor agree on."""


def quantize_whole(
    x: Tensor,
    format: str,
    dim: int = -1,
    scope: str = "tensor",
    rounding: str = "nearest_even",
    *,
    random: Tensor | None = None,
    largest: Largest | None = None,
) -> MXTensor:
    """x in FP8; along `dim` elements share a scale, under scope=tensor all of them do.

    x: float32, bfloat16 or float16. scope: `row` or `tensor`. random: for stochastic rounding, 32 random bits in int64, like x.
    A row (a tensor) with NaN or infinity is NaN whole. ModelError for an unknown format.
    """
    if format not in WHOLE:
        raise ModelError(f"number format {format!r}: no such format; choose one of {', '.join(WHOLE)}")
    found = WHOLE[format]
    values = x.movedim(dim, -1).to(torch.float32)
    magnitudes = values.abs()
    amax = magnitudes.amax() if scope == "tensor" else magnitudes.amax(-1, keepdim=True)
    amax = torch.where(amax.isnan(), torch.inf, amax)
    amax = amax if largest is None else largest(amax)
    scales = shared_exponent(amax, found.element, "rceil").expand(*values.shape[:-1], 1)
    keep, inverse = ((scales != NAN) * 255).to(torch.uint8), power(2 * BIAS - scales)
    if rounding == "nearest_even":
        codes = (values * inverse).to(NATIVE[found.element.name]).view(torch.uint8).bitwise_and_(keep)
    else:
        bits = None if random is None else random.movedim(dim, -1)
        codes = encode(magnitudes.mul_(inverse), values, keep, found.element, rounding, bits)
    return MXTensor(codes.contiguous(), scales, found, dim % x.ndim)


def dequantize_whole(found: MXTensor, dtype: torch.dtype) -> Tensor:
    """`MXTensor.dequantize` of such a tensor, to float32 or bfloat16."""
    elements = found.elements.view(NATIVE[found.format.element.name])
    return (elements.to(dtype) * power(found.scales).to(dtype)).movedim(-1, found.dim)
