"""Where a launch finds its tensors: a row of numbers for each, and the chunks that all of them are cut into.

One launch steps every tensor, so none of them is an argument of the kernel. A program takes one chunk: it reads which tensor
that is, then that tensor's row. A few tens of kilobytes go to the GPU when a pointer has changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.quantize import Draw

CHUNK = 16384
"""Elements of a program: enough to make the two dependent reads of its tables small beside 300 kB of its own, few enough that
a model of 100 million parameters still gives every multiprocessor dozens."""

COLUMNS = 10
"""Of a row: addresses of parameter, gradient, moments and shadow; elements; random key; place in the whole tensor."""
_SIZE, _KEY, _PLACE = 5, 6, 7

_MASK = np.uint64(0xFFFFFFFF)


class Tables:
    """Of tensors of these sizes, in elements; which ones they are is said by `point`.

    rows: int64 [tensors, COLUMNS] and chunks: int64 [chunks], number of the tensor << 32 | number of its chunk, on the device.
    places: of each tensor in the whole one, `place_of`, where rounding is stochastic.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        device: torch.device,
        places: Sequence[tuple[int, int, int]] = (),
        *,
        shadowed: bool = False,
    ) -> None:
        self.device, self.stochastic, self.shadowed = device, bool(places), shadowed
        self.rectangles = any(width != pitch for _, width, pitch in places)
        self._known = np.zeros((len(sizes), COLUMNS), np.int64)
        self._known[:, _SIZE] = sizes
        if places:
            self._known[:, _PLACE:] = places
        counts = -(-self._known[:, _SIZE] // CHUNK)
        tensor = np.repeat(np.arange(len(sizes)), counts)
        number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        self.chunks = torch.from_numpy(tensor << 32 | number).to(device)
        self.counts = torch.from_numpy(counts).to(device)
        self.rows = torch.empty(0)

    def point(self, *tensors: Sequence[Tensor], keys: Sequence[int] | np.ndarray = ()) -> None:
        """To parameters, gradients, first and second moments, and shadows if there are, all contiguous; with these random keys,
        int64."""
        new = self._known.copy()
        for column, some in enumerate(tensors):
            if some:
                new[:, column] = [tensor.data_ptr() for tensor in some]
        if len(keys):
            new[:, _KEY] = _packed(np.asarray(keys, np.int64))
        if self.rows.numel() and np.array_equal(new, self._known):
            return
        self._known, rows = new, torch.from_numpy(new)
        # from pinned memory, so that nobody waits; torch keeps that memory until it is read
        self.rows = rows.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else rows

    def sums(self, partials: Tensor) -> Tensor:
        """float32 [tensors, 2] of what the chunks found, [chunks, 2], in order and in float64: the same every time."""
        return torch.segment_reduce(partials.double(), "sum", lengths=self.counts, axis=0).float()


def place_of(draw: Draw, shape: Sequence[int]) -> tuple[int, int, int]:
    """(index of the first element in the whole tensor, elements of a row here, elements of a row there).

    ModelError for a part whose rows are not evenly far from one another, which takes three dimensions.
    """
    whole, offset = draw.shape or tuple(shape), draw.offset or (0,) * len(shape)
    strides = [math.prod(whole[dim + 1 :]) for dim in range(len(whole))]
    begin = sum(start * stride for start, stride in zip(offset, strides, strict=True))
    cut = [dim for dim in range(len(whole)) if shape[dim] != whole[dim]]
    if not cut or (last := cut[-1]) == 0 or math.prod(shape[:last]) == 1:
        return begin, math.prod(shape), math.prod(shape)
    if any(dim > 0 for dim in cut[:-1]):
        raise ModelError(
            f"stochastic rounding: a part {tuple(shape)} of {whole} is cut along dimensions {cut}; its rows are not evenly "
            "spaced; cut at most the first and one more"
        )
    return begin, shape[last] * strides[last], whole[last] * strides[last]


def _packed(keys: np.ndarray) -> np.ndarray:
    """int64 keys as `models.formats.random.bits` uses them: the lower half as it is, above it the upper half mixed."""
    unsigned = keys.astype(np.uint64)
    x = unsigned >> np.uint64(32)
    x = ((x ^ (x >> np.uint64(16))) * np.uint64(0x21F0AAAD)) & _MASK
    x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x735A2D97)) & _MASK
    x ^= x >> np.uint64(15)
    return ((x << np.uint64(32)) | (unsigned & _MASK)).astype(np.int64)
