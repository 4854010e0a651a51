"""Order as a function: pseudo-random permutations that follow from a key alone and are never stored.

Nothing here uses numpy's random generators, whose streams may change between releases: an order must outlive them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import numpy as np

ORDER_VERSION = 2
"""Raised with any change here or in `data.stream` that changes a sequence; part of a stream's fingerprint."""

_ROUNDS = 6


def key(*parts: object) -> int:
    """A 64-bit key from any parts, e.g. `key("blocks", seed, epoch)`; different parts give unrelated keys."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: np.ndarray, seed: int) -> np.ndarray:
    """A keyed 64-bit hash of uint64 values, elementwise (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(size: int, seed: int) -> np.ndarray:
    """A whole permutation of range(size), int64: a sort by keyed hashes, fair at any size, in O(size) memory."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64), seed), kind="stable")


class Bijection:
    """A permutation of range(size) evaluated at single points, in O(1) memory, for any size.

    A Feistel network on the smallest even number of bits that holds `size`; a value that falls outside the range walks
    on along its cycle until it is inside (fewer than four steps on average), which keeps the map one-to-one.
    """

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._half) - 1)
        self._keys = [key("feistel", seed, round_) for round_ in range(_ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Images of int64 positions in [0, size), int64 of the same shape."""
        values = self._network(np.asarray(positions).astype(np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        half = np.uint64(self._half)
        left, right = values >> half, values & self._mask
        for seed in self._keys:
            left, right = right, left ^ (mix(right, seed) & self._mask)
        return (left << half) | right


class UnitOrder:
    """The order in which an epoch visits the units of a source.

    cells: int64 [cells], units of each cell (a stretch of the corpus). shuffle:
    `global`: a keyed permutation of all units, evaluated point by point;
    `window`: cells in a keyed order, `window` of them at a time, the units of those in a keyed order: whoever reads on
    needs no more than that many cells at hand;
    `none`: as stored.
    Memory is O(cells). Units are numbered as stored.
    """

    def __init__(self, cells: np.ndarray, shuffle: str, window: int, seed: int) -> None:
        self._cells, self._shuffle, self._window, self._seed = cells, shuffle, window, seed
        self._stored = starts_of(cells)
        self.units = int(self._stored[-1])
        self._bijections: OrderedDict[tuple[int, int], Bijection] = OrderedDict()
        self._visits: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def __call__(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Units at positions [0, units) of an epoch, int64 [n] to int64 [n]."""
        if self._shuffle == "none":
            return positions
        if self._shuffle == "global":
            return self._bijection(epoch, 0, self.units)(positions)
        cells, starts = self._visit(epoch)
        group = (np.searchsorted(starts, positions, side="right") - 1) // self._window
        out = np.empty(len(positions), np.int64)
        for number in np.unique(group):
            rows = np.flatnonzero(group == number)
            low, high = number * self._window, min((number + 1) * self._window, len(cells))
            begin, size = int(starts[low]), int(starts[high] - starts[low])
            moved = begin + self._bijection(epoch, int(number), size)(positions[rows] - begin)
            visit = np.searchsorted(starts, moved, side="right") - 1
            out[rows] = self._stored[cells[visit]] + moved - starts[visit]
        return out

    def cells_at(self, epoch: int, position: int) -> list[int]:
        """Cells that the window at a position reads and, after them, those of the next; for reading ahead."""
        if self._shuffle != "window":
            return []
        cells, starts = self._visit(epoch)
        low = (int(np.searchsorted(starts, position, side="right")) - 1) // self._window * self._window
        return cells[low : low + 2 * self._window].tolist()

    def _visit(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(cells in the order of an epoch, where each begins among the epoch's positions)."""
        if epoch not in self._visits:
            cells = permutation(len(self._cells), key("cells", self._seed, epoch))
            cells = cells[self._cells[cells] > 0]
            self._visits[epoch] = (cells, starts_of(self._cells[cells]))
            if len(self._visits) > 2:
                self._visits.popitem(last=False)
        return self._visits[epoch]

    def _bijection(self, epoch: int, group: int, size: int) -> Bijection:
        name = (epoch, group)
        if name not in self._bijections:
            self._bijections[name] = Bijection(size, key("units", self._seed, epoch, group))
            if len(self._bijections) > 16:
                self._bijections.popitem(last=False)
        return self._bijections[name]


def starts_of(sizes: np.ndarray | list[int]) -> np.ndarray:
    """Where things of these sizes begin when they stand in a row, and where the last one ends: int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
