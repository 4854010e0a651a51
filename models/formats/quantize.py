"""A tensor into a block format: the definition, in plain torch and integer arithmetic, that every kernel equals bit for
bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.elements import ROUNDINGS, encode
from models.formats.names import Format, format_of
from models.formats.packing import pack
from models.formats.random import bits
from models.formats.scales import (
    BIAS,
    MODES,
    NAN,
    NAN_E4M3,
    block_scale,
    block_value,
    shared_exponent,
    spread,
    tensor_scale,
)
from models.formats.tensor import MXTensor
from models.random import offsets


@dataclass(frozen=True)
class Draw:
    """Where stochastic rounding draws from. key: 64 bits, a number or an int64 scalar. offset: where the tensor begins in the
    whole one, whose shape is `shape`; both empty for a whole tensor. places: instead of both, int64 [extent] for every
    dimension, whose sum is an element's place; for tensors that are no box of the whole one."""

    key: int | Tensor
    offset: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    places: tuple[Tensor, ...] = ()

    def index(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Row-major places of the elements in the whole tensor, int64."""
        if self.places:
            lines = [line.reshape([-1] + [1] * (len(shape) - 1 - dim)) for dim, line in enumerate(self.places)]
            return sum(lines[1:], lines[0])
        return offsets(self.shape or tuple(shape), self.offset or (0,) * len(shape), tuple(shape), device)

    def lines(self, shape: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
        """int64 [extent] for every dimension, whose sum is an element's place: `index` for kernels, which add as they go."""
        if self.places:
            return self.places
        whole, offset = self.shape or tuple(shape), self.offset or (0,) * len(shape)
        return tuple(
            torch.arange(first, first + count, device=device) * prod(whole[dim + 1 :])
            for dim, (first, count) in enumerate(zip(offset, shape, strict=True))
        )


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
) -> MXTensor:
    """x in a block format, its blocks along `dim`.

    x: float32, bfloat16 or float16, at least one dimension. format: a name of `FORMATS`. scale: `floor`, `rceil`, `ceil` or
    `even`, see `scales.shared_exponent`; nvfp4 has a rule of its own and takes `floor` for it. rounding: `nearest_even`,
    `half_away` or `stochastic`, which draws from `draw`. square: one scale for block x block elements of the last
    dimension but `dim` and `dim`, so that a transpose needs no second copy. whole_amax: for nvfp4, the largest magnitude
    of the whole tensor where x is a part of it. A block with NaN or infinity is NaN whole, a block of zeros has scale
    byte 0.

    ModelError for unknown names, dtypes, and widths that blocks do not divide. Source: OCP Microscaling v1.0, section 6.3;
    for nvfp4 arXiv 2509.25149, section 4.
    """
    found = checked(x, format, dim, scale, rounding, square, draw)
    dim %= x.ndim
    values, width = x.movedim(dim, -1).to(torch.float32), found.block
    random = None
    if rounding == "stochastic":
        assert draw is not None
        random = bits(draw.key, draw.index(x.shape, x.device)).movedim(dim, -1)
    blocks = in_blocks(values, width, square)
    amax = torch.where(blocks.isnan(), torch.inf, blocks.abs()).amax(-1)
    if found.scale == "e4m3":
        codes, scales, whole = _encode_scaled(values, amax, found, rounding, random, square, whole_amax)
    else:
        scales, whole = shared_exponent(amax, found.element, scale), None
        exponents = spread(scales.to(torch.int64) - BIAS, width, square)
        finite = torch.where(spread(scales, width, square) == NAN, 0.0, values)
        codes = encode(finite, exponents, found.element, rounding, random)
    return MXTensor(pack(codes, found.element.bits), scales, found, dim, square, whole)


def checked(
    x: Tensor, format: str, dim: int, scale: str, rounding: str, square: bool = False, draw: Draw | None = None
) -> Format:
    """The format of a name, after a check of everything that `quantize` is told. ModelError."""
    found = format_of(format)
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"{format}: takes float32, bfloat16 or float16, not {x.dtype}")
    if not -x.ndim <= dim < x.ndim:
        raise ModelError(f"dim={dim}: a tensor of shape {tuple(x.shape)} has no such dimension")
    if scale not in MODES:
        raise ModelError(f"scale={scale!r}: choose one of {', '.join(MODES)}")
    if found.scale == "e4m3" and scale != "floor":
        raise ModelError(f"scale={scale!r}: has no effect on {format}, whose scales are no powers of two; leave it out")
    if rounding not in ROUNDINGS:
        raise ModelError(f"rounding={rounding!r}: choose one of {', '.join(ROUNDINGS)}")
    if rounding == "stochastic" and draw is None:
        raise ModelError("rounding=stochastic: needs a key to draw from (draw=Draw(key))")
    if square and x.ndim < 2:
        raise ModelError("square blocks: a tensor of one dimension has none")
    sides = [x.shape[dim]]
    if square:  # the last dimension but the blocked one
        sides.append(x.shape[-1] if dim % x.ndim != x.ndim - 1 else x.shape[-2])
    for side in sides:
        if side % found.block:
            raise ModelError(
                f"{found.name}: {side} elements along a dimension of shape {tuple(x.shape)} are no multiple of the block, "
                f"{found.block}; choose a width that is, or keep this tensor in another format"
            )
    return found


def in_blocks(values: Tensor, width: int, square: bool) -> Tensor:
    """[..., blocks of the last dimension, elements of a block]; of square ones [..., rows of blocks, blocks, elements]."""
    if not square:
        return values.unflatten(-1, (-1, width))
    return values.unflatten(-1, (-1, width)).unflatten(-3, (-1, width)).transpose(-3, -2).flatten(-2)


def _encode_scaled(
    values: Tensor,
    amax: Tensor,
    format_: Format,
    rounding: str,
    random: Tensor | None,
    square: bool,
    whole_amax: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scales, the tensor's scale) of NVFP4. Elements are values / (block's scale * tensor's scale), divided in
    float32."""
    if whole_amax is None:
        finite = amax[amax.isfinite()]
        whole_amax = finite.amax() if finite.numel() else amax.new_zeros(())
    whole = tensor_scale(whole_amax.to(torch.float32))
    scales = block_scale(amax, whole)
    factors = spread(block_value(scales, whole), format_.block, square)
    usable = (spread(scales, format_.block, square) != NAN_E4M3) & (factors > 0)
    scaled = torch.where(usable, values / factors, 0.0)
    codes = encode(scaled, torch.zeros_like(scaled, dtype=torch.int64), format_.element, rounding, random)
    return codes, scales, whole
