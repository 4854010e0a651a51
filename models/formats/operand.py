"""An operand of a product on its way through memory, autograd and the wire: as it was, or in a block format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.formats.names import FORMATS, Format
from models.formats.quantize import Draw
from models.formats.random import bits
from models.formats.tensor import MXTensor
from models.formats.whole import WHOLE, dequantize_whole, quantize_whole
from models.kernels.mx_quantize import dequantize, quantize

Largest = Callable[[Tensor, bool], Tensor]
"""(magnitudes that this process knows, whether of the whole tensor) -> what all processes with parts of it agree on."""


@dataclass(frozen=True)
class Operand:
    """tensors: a plain tensor alone, or elements, scales and, of NVFP4, the tensor's scale, as `MXTensor` has them. layout:
    what else an MXTensor says of them, (format, dim, square); None for a plain tensor."""

    tensors: tuple[Tensor, ...]
    layout: tuple[Format, int, bool] | None = None

    @staticmethod
    def of(found: MXTensor) -> Operand:
        """From a tensor in a block format."""
        whole = () if found.tensor_scale is None else (found.tensor_scale,)
        return Operand((found.elements, found.scales, *whole), (found.format, found.dim, found.square))

    def values(self, dtype: torch.dtype, kernels: str = "auto") -> Tensor:
        """What it stands for."""
        if self.layout is None:
            return self.tensors[0].to(dtype)
        found = self.tensor()
        return dequantize(found, dtype, kernels) if found.format.block else dequantize_whole(found, dtype)

    def tensor(self) -> MXTensor:
        """The tensor in a block format again; of a plain one there is none."""
        assert self.layout is not None
        elements, scales, *whole = self.tensors
        format, dim, square = self.layout
        return MXTensor(elements, scales, format, dim, square, whole[0] if whole else None)

    def unscaled(self) -> tuple[Operand, Tensor | None]:
        """Without the scale of the whole tensor, and that scale, which of all formats NVFP4 alone has."""
        if self.layout is None or len(self.tensors) == 2:
            return self, None
        elements, scales, whole = self.tensors
        return replace(self, tensors=(elements, scales, torch.ones_like(whole))), whole

    def tokens_last(self) -> Operand:
        """Of [S, B, N] in blocks along S, stored as [B, N, S], the matrix [N, B S] as it is stored with blocks along its last
        dim."""
        assert self.layout is not None
        format, _, square = self.layout
        elements, scales, *whole = self.tensors
        parts = [part.movedim(0, 1).flatten(1) for part in (elements, scales)]
        if not format.block:
            parts[1] = scales.select(0, 0)  # one for all tokens of a feature, `operand` has made sequences agree
        return Operand((*parts, *whole), (format, 1, square))

    def gathered(self, gather: Callable[[Tensor, int], Tensor]) -> Operand:
        """The whole of what this is a share of along the tensor's dim 0. gather: (share, along which dim of it) -> whole."""
        if self.layout is None:
            return Operand((gather(self.tensors[0], 0),))
        elements, scales, *whole = self.tensors
        format, dim, _ = self.layout
        last = elements.ndim - 1  # where the blocked dimension lies
        if dim == 0:
            agreed = not format.block  # one scale for all shares
            return replace(self, tensors=(gather(elements, last), scales if agreed else gather(scales, last), *whole))
        return replace(self, tensors=(gather(elements, 0), gather(scales, 0), *whole))


def operand(
    x: Tensor,
    format: str,
    dim: int,
    *,
    scale: str,
    scope: str,
    rounding: str,
    square: bool,
    drawn: tuple[Tensor, tuple[Tensor, ...]] | None,
    largest: Largest,
    kernels: str = "auto",
) -> Operand:
    """x in a format, blocks (or rows, or the whole tensor) along `dim`.

    scale: rule of MX formats. scope: of fp8. drawn: key and places (int64 [extent] for every dimension) of stochastic
    rounding.
    """
    draw = None if drawn is None else Draw(drawn[0], places=drawn[1])
    if format in WHOLE:
        random = None if draw is None else bits(draw.key, draw.index(x.shape, x.device))

        def agreed(amax: Tensor) -> Tensor:
            if (
                scope == "row" and dim == 0 and x.ndim == 3
            ):  # [B, K, 1]: a row of the product has the tokens of all sequences
                amax = amax.amax(0, keepdim=True).expand_as(amax)
            return largest(amax, scope == "tensor")

        return Operand.of(quantize_whole(x, format, dim, scope, rounding, random=random, largest=agreed))
    if FORMATS[format].scale == "e8m0":
        return Operand.of(quantize(x, format, dim, scale, rounding, square=square, draw=draw, kernels=kernels))
    low, high = x.nan_to_num(0.0, 0.0, 0.0).aminmax()
    amax = largest(torch.maximum(-low, high).to(torch.float32), True)
    options = {"square": square, "draw": draw, "whole_amax": amax, "kernels": kernels}
    return Operand.of(quantize(x, format, dim, "floor", rounding, **options))
