"""The losses of a head, chunk of tokens by chunk: logits are made, used and overwritten, and never whole in memory.

The gradients are products of the logits' gradient G [T, V], whose row t is g_t times what the forward pass can know:
G W for the input and Gᵀ X for the weight. The upstream gradient g is known in backward alone, when the logits are gone. So

- where the caller says by what weights w it will multiply the losses, forward takes w for g and computes both products while a
  chunk's logits are there: three products in all. If upstream turns out to be s w for a number s, as it is of a weighted sum,
  both gradients are scaled by s, and that is all. Nothing is believed: backward compares, to the rounding of float32.
- else, or if upstream turns out otherwise (a row of X's gradient could be scaled by itself, but Gᵀ X sums over the rows),
  backward makes the logits of each chunk again from the saved lse: four products, right for any upstream.

The weight's gradient is summed over chunks in float32: in bfloat16 an addend would lose the bits that hundreds of chunks
decide. Each chunk reads and writes that sum, 8 bytes an element of the weight against 2 x chunk operations: at 1024 tokens and
4.3 TB/s a third less time than the product itself takes at 790 TFLOP/s, and cuBLAS does it while it multiplies (beta = 1).
That is why chunks are as large as `LOGITS_BYTES` lets them be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.kernels.cross_entropy.vocabulary import (
    Place,
    RowFunctions,
    Terms,
    VocabAxis,
    accumulated_in,
    measured,
)

LOGITS_BYTES = 256 << 20
"""What the logits of a chunk may take."""
TILE = 128
"""Chunks are multiples of it, as tiles of products are."""
LIKE = 4
"""How many units in the last place upstream may differ from s w: s is a quotient and s w a product, rounded once each."""


class HeadFunctions(RowFunctions, Protocol):
    """Those of `cross_entropy`, and one that does the work of two."""

    def both(self, logits: Tensor, targets: Tensor, scale: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """(losses, lse) of whole rows, whose gradient times `scale` is written over the logits."""


@dataclass(frozen=True)
class How:
    """All but the tensors. chunk: tokens at a time."""

    terms: Terms
    axis: VocabAxis | None
    chunk: int
    functions: HeadFunctions


@dataclass(frozen=True)
class Wanted:
    """Which gradients are asked for: of the input and of the weight."""

    x: bool
    weight: bool


def chunk_for(tokens: int, rows: int, itemsize: int) -> int:
    """Tokens of a chunk: as many as `LOGITS_BYTES` lets be, in chunks as even as multiples of TILE can be."""
    most = max(1, LOGITS_BYTES // max(1, rows * itemsize))
    most = most // TILE * TILE or most
    if tokens <= most:
        return max(1, tokens)
    even = -(-tokens // -(-tokens // most))
    return min(most, -(-even // TILE) * TILE)


def forward(
    x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor | None, how: How, wanted: Wanted
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(losses [T], lse [T], gradients of x [T, H] and of the weight [V', H], float32, for upstream = scale); gradients that are
    not wanted, or without scale, are empty. x: [T, H], weight: [V', H], targets: int64 [T]."""
    losses = x.new_empty(x.shape[0], dtype=accumulated_in(x.dtype))
    lse = torch.empty_like(losses)
    scaled = scale is not None and (wanted.x or wanted.weight)
    sums = _Gradients(x, weight, wanted if scaled else Wanted(False, False))
    place, buffer = Place.of(how.axis, weight.shape[0]), _buffer(x, weight, how)
    for part in _parts(x.shape[0], how.chunk):
        logits = torch.mm(x[part], weight.t(), out=buffer[: len(x[part])])
        if scale is not None and scaled and how.axis is None:
            losses[part], lse[part] = how.functions.both(logits, targets[part], scale[part], how.terms)
        else:
            losses[part], lse[part] = measured(how.functions, logits, targets[part], place, how.terms, how.axis)
            if scale is not None and scaled:
                how.functions.gradient(logits, targets[part], lse[part], scale[part], place, how.terms, logits)
        sums.add(part, logits)
    return losses, lse, sums.x, sums.weight


def backward(
    upstream: Tensor, x: Tensor, weight: Tensor, targets: Tensor, lse: Tensor, how: How, wanted: Wanted
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the weight for any upstream [T], from logits made again."""
    sums = _Gradients(x, weight, wanted)
    place, buffer = Place.of(how.axis, weight.shape[0]), _buffer(x, weight, how)
    for part in _parts(x.shape[0], how.chunk):
        logits = torch.mm(x[part], weight.t(), out=buffer[: len(x[part])])
        how.functions.gradient(logits, targets[part], lse[part], upstream[part], place, how.terms, logits)
        sums.add(part, logits)
    return sums.x, sums.weight.to(weight.dtype)


def factor_between(upstream: Tensor, scale: Tensor) -> Tensor | None:
    """The number s, a tensor, if upstream = s scale, else None. Waits for the device: what follows depends on it."""
    if not scale.numel():
        return None
    largest = scale.abs().argmax()
    factor = torch.where(scale[largest] == 0, 0, upstream[largest] / scale[largest])
    room = LIKE * torch.finfo(upstream.dtype).eps * upstream.abs()
    return factor if bool(((upstream - factor * scale).abs() <= room).all()) else None


def scaled(factor: Tensor, for_x: Tensor, for_weight: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of forward times a factor, the weight's rounded to its type in the same pass."""
    out = torch.empty(for_weight.shape, dtype=weight.dtype, device=weight.device)
    return for_x * factor.to(for_x.dtype if for_x.dtype == torch.float64 else torch.float32), torch.mul(
        for_weight, factor, out=out
    )


class _Gradients:
    """Sums over chunks. x: [T, H] in its type, whose rows a chunk gives whole; weight: [V', H] in float32."""

    def __init__(self, x: Tensor, weight: Tensor, wanted: Wanted) -> None:
        self._given, self._head, self._wanted = x, weight, wanted
        self.x = torch.empty_like(x) if wanted.x else x.new_empty(0)
        wide = accumulated_in(weight.dtype)
        make = torch.empty_like if x.shape[0] else torch.zeros_like
        self.weight = make(weight, dtype=wide) if wanted.weight else weight.new_empty(0, dtype=wide)

    def add(self, part: slice, gradient: Tensor) -> None:
        """gradient: of the logits of the tokens `part`, [chunk, V']."""
        if self._wanted.x:
            torch.mm(gradient, self._head, out=self.x[part])
        if self._wanted.weight:
            _add_product(self.weight, gradient.t(), self._given[part], begun=part.start > 0)


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, begun: bool) -> None:
    """total += a b, or total = a b where nothing was begun (it is not read then), summed in the type of the total."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, beta=int(begun))
    elif total.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=int(begun), out=total)
    else:  # on CPU torch multiplies into the type of the factors alone
        total.addmm_(a.to(total.dtype), b.to(total.dtype), beta=int(begun))


def _buffer(x: Tensor, weight: Tensor, how: How) -> Tensor:
    """Where the logits of one chunk after another are."""
    return x.new_empty(min(how.chunk, x.shape[0]), weight.shape[0])


def _parts(tokens: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, tokens)) for start in range(0, tokens, chunk)]
