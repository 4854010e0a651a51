"""Into MX in plain torch, on any device: what `models.formats` defines in int64, in 32 bits and few passes.

Equal to the definition bit for bit; `device` says why. A tensor is looked at as [P, K, I]: P blocks of K elements that lie I
apart, I = 1 where blocks lie along the last dimension. Eager torch on CPU goes through it a part at a time, which stays in
cache; a compiler is given it whole, and fuses. Not differentiable: whoever calls has a gradient of its own.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from models.formats.elements import ELEMENTS
from models.formats.names import Format
from models.formats.packing import pack
from models.formats.quantize import Draw
from models.formats.quantize import quantize as defined
from models.formats.random import bits, line_bits
from models.formats.scales import NAN, NAN_E4M3, block_value, tensor_scale
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize.encoding import (
    encode,
    inverse_power,
    largest,
    pack_blocks,
    pack_rows,
    random_bits,
    scale_bytes,
)

CHUNK = 1 << 18
"""Elements at a time: a megabyte of float32, half of a core's second cache."""


@torch.no_grad()
def quantize(
    x: Tensor, found: Format, dim: int, scale: str, rounding: str, square: bool, draw: Draw | None, whole: Tensor | None
) -> MXTensor:
    """`models.formats.quantize` of what is checked. dim: not negative. whole: the whole tensor's largest magnitude, or None."""
    if not x.numel():
        return defined(x, found.name, dim, scale, rounding, square=square, draw=draw, whole_amax=whole)
    x, laid, place = x.detach(), dim, None
    sub_box = rounding == "stochastic" and draw is not None and bool(draw.shape or draw.places)
    if dim != x.ndim - 1 and x.movedim(dim, -1).is_contiguous():  # transposed: its blocks lie along memory
        x, laid, sub_box = x.movedim(dim, -1), x.ndim - 1, rounding == "stochastic"
    if sub_box:
        assert draw is not None
        shape = x.movedim(-1, dim).shape if laid != dim else x.shape
        place = _drawn_by_lines(draw)
        place = (draw.index(shape, x.device) if place is None else place.expand(shape)).movedim(dim, laid)
    outer, inner = prod(x.shape[:laid]) * (x.shape[laid] // found.block), prod(x.shape[laid + 1 :])
    blocks = x.contiguous().view(outer, found.block, inner)
    place = None if place is None else place.contiguous().view(blocks.shape)
    count = _count(x.device, found.block * inner)
    amax = _joined([largest(part) for part in blocks.split(count)])
    if square:
        amax = of_squares(amax.reshape(divided(x, laid, found)), laid, found.block).reshape(amax.shape)
    scales, factor, keep, tensor = _scales(amax, found, scale, whole)
    made = []
    for start in range(0, outer, count):
        here = slice(start, start + count)
        random = _random(draw, place, blocks, here) if rounding == "stochastic" and draw is not None else None
        scaled = _scaled(blocks[here], factor[here], found)
        codes = encode(scaled, blocks[here], keep[here], found.element, rounding, random)
        made.append(_packed(codes, found.element.bits))
    elements = _along_last(_joined(made), x, laid, found.block)
    scales = scales.reshape(divided(x, laid, found)).movedim(laid, -1)
    scales = scales[..., :: found.block, :] if square else scales
    return MXTensor(elements, scales.contiguous(), found, dim, square, tensor)


def _drawn_by_lines(draw: Draw) -> Tensor | None:
    """Random numbers, int32, of a tensor whose places are told by lines, where nobody has to wait for them."""
    if not draw.places or torch.compiler.is_compiling() or draw.places[0].device.type != "cpu":
        return None
    return line_bits(draw.key, draw.places)


def _count(device: torch.device, size: int) -> int:
    """How many blocks, or rows of blocks beside one another, of `size` elements are worked on at a time."""
    if torch.compiler.is_compiling() or device.type != "cpu":
        return 1 << 62
    return max(1, CHUNK // max(1, size))


def _joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def divided(x: Tensor, dim: int, found: Format) -> list[int]:
    """x's shape with one number for each block along `dim`."""
    return [size // found.block if place == dim else size for place, size in enumerate(x.shape)]


def of_squares(amax: Tensor, dim: int, block: int) -> Tensor:
    """amax of lines of a block, along `dim`, to that of their square, which lies along the last dimension but `dim` too."""
    beside = amax.ndim - 1 if dim != amax.ndim - 1 else dim - 1
    squares = amax.unflatten(beside, (-1, block))
    return squares.amax(beside + 1, keepdim=True).expand_as(squares).flatten(beside, beside + 1)


def _scales(
    amax: Tensor, found: Format, mode: str, whole: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(scales uint8, what elements are multiplied or, of NVFP4, divided by, 255 where a block is a number and 0 where not, the
    tensor's scale) of blocks whose largest magnitudes are amax."""
    if found.scale == "e8m0":
        byte = scale_bytes(amax, found.element, mode)
        return byte.to(torch.uint8), inverse_power(byte), ((byte != NAN) * 255).to(torch.uint8), None
    usable = amax.isfinite()
    finite = torch.where(usable, amax, 0.0)
    if whole is None:
        whole = finite.amax()
    tensor = tensor_scale(whole.to(torch.float32))
    wanted = finite / found.element.largest / tensor
    e4m3 = ELEMENTS["e4m3"]
    every = torch.full((), 255, dtype=torch.uint8, device=amax.device)
    codes = encode(wanted.clamp_max(2 * e4m3.largest), wanted, every, e4m3, "nearest_even", None)
    codes = torch.where(usable, codes, NAN_E4M3).to(torch.uint8)
    factor = block_value(codes, tensor)
    return codes, factor, ((usable & (factor > 0)) * 255).to(torch.uint8), tensor


def _scaled(part: Tensor, factor: Tensor, found: Format) -> Tensor:
    """Magnitudes in units of their scale: float32, a fresh tensor."""
    magnitudes = part.to(torch.float32).abs_() if part.dtype != torch.float32 else part.abs()
    if found.scale == "e8m0":
        return magnitudes.mul_(factor)
    return magnitudes.div_(factor).clamp_max_(2.0 ** (found.element.largest_exponent + 1))


def _random(draw: Draw, place: Tensor | None, blocks: Tensor, here: slice) -> Tensor:
    """Random numbers of some blocks, by their places in the whole tensor, which are those in memory where None is told; places
    of int32 are the numbers themselves."""
    part = blocks[here]
    if place is not None and place.dtype == torch.int32:
        return place[here].to(torch.int64).bitwise_and_(0xFFFFFFFF)
    if place is not None:
        index = place[here]
    else:
        start = here.start * part[0].numel() if here.start else 0
        index = torch.arange(start, start + part.numel(), device=part.device).view(part.shape)
    if isinstance(draw.key, int) and not draw.places and prod(draw.shape or blocks.shape) <= 1 << 32:
        return random_bits(draw.key, index)
    return bits(draw.key, index)


def _packed(codes: Tensor, width: int) -> Tensor:
    """Codes [P, K, I] packed along K."""
    if codes.shape[2] != 1:
        return pack_blocks(codes, width)
    rows = codes.view(codes.shape[:2])
    return (pack(rows, width) if torch.compiler.is_compiling() else pack_rows(rows, width)).unsqueeze(2)


def _along_last(packed: Tensor, x: Tensor, dim: int, block: int) -> Tensor:
    """Blocks [P, bytes, I] of x, blocked along dim, as an MXTensor stores them: the blocked dimension last."""
    outer, inner = x.shape[:dim], x.shape[dim + 1 :]
    size = x.shape[dim] * packed.shape[1] // block
    return packed.view(prod(outer), size, prod(inner)).transpose(1, 2).contiguous().view(*outer, *inner, size)
