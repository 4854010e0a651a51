"""Random numbers as a function of (seed, name, global offset), so that state is a function of counters.

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") used as a counter-based
generator: element i of stream `key` is mix(key + (i + 1) * golden gamma). Integer arithmetic is exact on every device,
and any rectangle of a tensor can be made alone: a shard holds the same bits as the same rectangle of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.keys import GAMMA, MIX1, MIX2, signed
from models.keys import stream_key as stream_key
from models.loss import PLAIN, Terms

CHUNK = 1 << 20  # elements at a time: temporaries stay in cache, memory beyond the tensor stays constant


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def uniform(key: int | Tensor, index: Tensor) -> Tensor:
    """Uniform float64 in (0, 1), 52 random bits, for each global offset in `index` (int64, any shape).

    52, not 53: float64 then holds bits + 0.5 exactly, so the ends 0 and 1 (an infinite normal number) cannot come out.
    """
    x = (index + 1).mul_(signed(GAMMA)).add_(key)
    x = x.bitwise_xor_(_shift(x, 30)).mul_(signed(MIX1))
    x = x.bitwise_xor_(_shift(x, 27)).mul_(signed(MIX2))
    x = x.bitwise_xor_(_shift(x, 31))
    return _shift(x, 12).to(torch.float64).add_(0.5).mul_(2.0**-52)


def offsets(
    shape: tuple[int, ...], offset: tuple[int | Tensor, ...], extent: tuple[int, ...], device: torch.device
) -> Tensor:
    """Row-major global offsets (int64, shape `extent`) of a rectangle of a tensor of `shape`."""
    index = torch.zeros((1,) * len(extent), dtype=torch.int64, device=device)
    stride = 1
    for dim in reversed(range(len(shape))):
        line = (torch.arange(extent[dim], dtype=torch.int64, device=device) + offset[dim]) * stride
        index = index + line.reshape([-1 if d == dim else 1 for d in range(len(shape))])
        stride *= shape[dim]
    return index


@torch.no_grad()
def fill_normal(tensor: Tensor, key: int, shape: tuple[int, ...], offset: tuple[int, ...], std: float) -> None:
    """Fill a rectangle of a logical tensor with normal numbers of mean 0.

    tensor: the rectangle, written in place; any float dtype. shape: of the whole. offset: where the rectangle begins.
    """
    if tensor.dim() == 0 or tensor.numel() == 0:
        return
    rows = max(1, CHUNK // max(1, tensor[0].numel()))
    for start in range(0, tensor.shape[0], rows):
        part = tensor[start : start + rows]
        index = offsets(shape, (offset[0] + start, *offset[1:]), tuple(part.shape), tensor.device)
        part.copy_(torch.erfinv(uniform(key, index).mul_(2).sub_(1)).mul_(math.sqrt(2) * std))


@dataclass(frozen=True)
class Asked:
    """What a head is asked for that gives losses instead of logits. targets: int64 [R, S], S this rank's positions of what is
    predicted; weights: float32 [R, S] that the losses will be multiplied by, where they are known before."""

    targets: Tensor
    weights: Tensor | None = None
    terms: Terms = PLAIN

    def of(self, rows: slice) -> Asked:
        """Of some of the sequences."""
        return Asked(self.targets[rows], None if self.weights is None else self.weights[rows], self.terms)


class Clock:
    """Which samples a forward pass sees, so that dropout masks are a function of the sample and not of the layout, and
    the documents, prefixes and targets that they are made of, which every stage of a pipeline must know.

    The engine calls `start` once a step with the global index of the first sequence of this data rank; the
    micro-batches follow in order. A block asks `first_sample` once a forward pass; recomputation is given the same
    answer again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.moment = 0
        self._first = 0
        self._calls: dict[str, int] = {}
        self._documents: Tensor | None = None
        self._prefix: Tensor | None = None
        self._positions: Tensor | None = None
        self._borders: list[list[int]] | None = None
        self._asked: Asked | None = None

    def start(
        self,
        first_sample: int,
        documents: Tensor | None = None,
        prefix: Tensor | None = None,
        asked: Asked | None = None,
    ) -> None:
        """A step begins whose first sequence on this data rank has this global index. documents: int64 [R, S], the number
        of each token's document, S uncut; for models whose attention does not cross documents. prefix: bool [R, S], tokens
        that their whole document sees; None for none. asked: what the head gives losses of; None for logits."""
        self.moment += 1
        self._first, self._documents, self._prefix, self._positions = first_sample, documents, prefix, None
        self._borders, self._asked = None, asked
        self._calls = {}

    def first_sample(self, block: str, sequences: int) -> int:
        """Global index of the first of the `sequences` sequences that `block` now runs forward."""
        calls = self._calls.get(block, 0)
        self._calls[block] = calls + 1
        return self._first + calls * sequences

    def asked(self, first_sample: int, sequences: int) -> Asked | None:
        """What the head gives losses of for some sequences of this step, [B, S]; None where it gives logits."""
        if self._asked is None:
            return None
        start = first_sample - self._first
        return self._asked.of(slice(start, start + sequences))

    def documents(self, first_sample: int, sequences: int) -> Tensor:
        """Document numbers int64 [B, S] of some sequences of this step, S uncut."""
        assert self._documents is not None, "a model with a document mask was run without being told of documents"
        return self._documents[first_sample - self._first :][:sequences]

    def prefix(self, first_sample: int, sequences: int) -> Tensor | None:
        """Whether tokens [B, S] of some sequences of this step belong to a prefix; None where none of the step does."""
        return None if self._prefix is None else self._prefix[first_sample - self._first :][:sequences]

    def positions(self, first_sample: int, sequences: int) -> Tensor:
        """How many tokens of its document stand before each token, int64 [B, S], S uncut."""
        if self._positions is None:
            assert self._documents is not None, "a model that counts positions by document was not told of documents"
            begins = self._begins()
            place = torch.arange(self._documents.shape[1], device=self._documents.device)
            self._positions = place - (place * begins).cummax(1).values
        return self._positions[first_sample - self._first :][:sequences]

    def borders(self, first_sample: int, sequences: int) -> list[list[int]]:
        """Where documents begin in each of some sequences of this step, in ascending order."""
        if self._borders is None:
            assert self._documents is not None, "a model with a document mask was run without being told of documents"
            rows, places = self._begins().nonzero(as_tuple=True)
            counts = rows.bincount(minlength=len(self._documents)).tolist()
            self._borders = [part.tolist() for part in places.cpu().split(counts)]
        return self._borders[first_sample - self._first :][:sequences]

    def _begins(self) -> Tensor:
        """bool [R, S]: whether a document begins at a token."""
        assert self._documents is not None
        return torch.diff(self._documents, dim=1, prepend=self._documents[:, :1] - 1) != 0


def key_tensor(key: int) -> Tensor:
    """A key as an int64 scalar, which a compiled block takes as an input: of a number it would be compiled for that alone."""
    return torch.tensor(key, dtype=torch.int64, device="cpu")


def drop(x: Tensor, key: int | Tensor, probability: float, index: Tensor) -> Tensor:
    """Dropout of x, whose elements stand at the global offsets `index` of the stream `key`.

    Scaled by a Python number, which a bfloat16 product takes in float32: a scaled mask would round 1 / 0.9 by 0.16 %.
    """
    return x.masked_fill(uniform(key, index) < probability, 0) * (1 / (1 - probability))
