"""Which source the unit at a global index comes from, and how many units of that source came before: in O(1), exactly.

Weights are split by a binary tree over the sources. At a node with share p = k/2^24 for its left side, of the first g
units floor((g·k + phase)/2^24) go left; integers alone, so any prefix is exact at any index on any machine, and no
history is kept. Each node keeps its left share within one unit of p·g at every prefix, so a source is never further
from its weight than the depth of the tree.

A mixture is a sequence of stages with constant weights; weights that move by tokens are many short ones. A source may
have a cap: at the unit where it is spent the others share its weight, which begins a stage of its own.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.config import DataError
from data.order import key

_BITS = 24
_ONE = 1 << _BITS
END = 1 << 38
"""Units that a mixture can number: 5·10^14 tokens in units of 2,048. The products below stay within 63 bits."""


@dataclass(frozen=True)
class _Node:
    """A source (left is None), or a division of the units between two nodes."""

    source: int = -1
    left: _Node | None = None
    right: _Node | None = None
    share: int = 0
    phase: int = 0

    def count(self, units: int, counts: list[int]) -> None:
        """Adds to `counts` how many of the first `units` each source gets."""
        if self.left is None or self.right is None:
            counts[self.source] += units
            return
        left = (units * self.share + self.phase) >> _BITS
        self.left.count(left, counts)
        self.right.count(units - left, counts)

    def place(self, units: np.ndarray, source: np.ndarray, index: np.ndarray, rows: np.ndarray) -> None:
        """Writes source and index of the units (int64 [n]) to the given rows."""
        if self.left is None or self.right is None:
            source[rows], index[rows] = self.source, units
            return
        before = (units * self.share + self.phase) >> _BITS
        goes_left = ((units + 1) * self.share + self.phase) >> _BITS > before
        self.left.place(before[goes_left], source, index, rows[goes_left])
        self.right.place((units - before)[~goes_left], source, index, rows[~goes_left])


@dataclass(frozen=True)
class _Stage:
    """From unit `start` on; base: units of each source before it."""

    start: int
    base: tuple[int, ...]
    node: _Node

    def counts(self, units: int) -> list[int]:
        """Units of each source before global unit `units`."""
        counts = list(self.base)
        self.node.count(units - self.start, counts)
        return counts


class Mixture:
    """sources: how many; seed: keys the phases, so that two mixtures with equal weights interleave otherwise.

    `add` appends stages; then `place` and `counts` answer for every unit before `units`.
    """

    def __init__(self, sources: int, seed: int) -> None:
        self._sources, self._seed = sources, seed
        self._stages: list[_Stage] = []
        self.units = 0

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the interleaving."""
        return hashlib.sha256(repr((self._stages, self.units)).encode()).hexdigest()[:32]

    def add(
        self, weights: Sequence[float], units: int | None = None, caps: Sequence[int | None] | None = None
    ) -> list[int]:
        """Appends `units` units (None: all that is left) drawn by `weights` (≥ 0, any sum).

        caps: units of each source over the whole mixture, None = no limit; a source at its cap leaves its weight to
        the others. Ends early when every source with weight is spent. Returns the sources that were spent on the way.
        """
        caps = caps or [None] * self._sources
        stop, spent = END if units is None else min(END, self.units + units), []
        while self.units < stop:
            base = self.counts(self.units)
            weighed = [
                0.0 if cap is not None and base[i] >= cap else w
                for i, (w, cap) in enumerate(zip(weights, caps, strict=True))
            ]
            if not any(weighed):
                break
            stage = _Stage(self.units, tuple(base), self._tree(weighed))
            end = min(
                [stop, *(_reaches(stage, i, cap, stop) for i, cap in enumerate(caps) if weighed[i] and cap is not None)]
            )
            self._stages.append(stage)
            self.units = end
            counts = stage.counts(end)
            spent += [i for i, cap in enumerate(caps) if weighed[i] and cap is not None and counts[i] >= cap]
        return spent

    def counts(self, units: int) -> list[int]:
        """Units of each source among the first `units`."""
        if not self._stages:
            return [0] * self._sources
        return self._stages[self._stage_of(min(units, self.units))].counts(min(units, self.units))

    def place(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, index within the source) of global units, int64 [n] each. DataError past the end."""
        if len(units) and int(units.max()) >= self.units:
            raise DataError(
                f"data.sources: spent after {self.units} units; raise `epochs` of a source, add text, or shorten the run"
            )
        source, index = np.empty(len(units), np.int64), np.empty(len(units), np.int64)
        stages = np.searchsorted([stage.start for stage in self._stages], units, side="right") - 1
        for number in np.unique(stages):
            stage, rows = self._stages[number], np.flatnonzero(stages == number)
            stage.node.place(units[rows] - stage.start, source, index, rows)
            index[rows] += np.asarray(stage.base)[source[rows]]
        return source, index

    def _stage_of(self, units: int) -> int:
        found = 0
        for number, stage in enumerate(self._stages):
            if stage.start <= units:
                found = number
        return found

    def _tree(self, weights: Sequence[float]) -> _Node:
        """The lightest two are joined first (Huffman), so what is drawn often is near the root and evenly spread."""
        heap = [(weight, source, _Node(source)) for source, weight in enumerate(weights) if weight > 0]
        heapq.heapify(heap)
        while len(heap) > 1:
            light, first, right = heapq.heappop(heap)
            heavy, second, left = heapq.heappop(heap)
            share = min(max(round(heavy / (light + heavy) * _ONE), 1), _ONE - 1)
            phase = key("mixture", self._seed, len(self._stages), first, second) % _ONE
            heapq.heappush(heap, (light + heavy, min(first, second), _Node(-1, left, right, share, phase)))
        return heap[0][2]


def _reaches(stage: _Stage, source: int, cap: int, stop: int) -> int:
    """The first global unit before which the source has `cap` units, at most `stop`."""
    low, high = stage.start, stop
    while low < high:
        middle = (low + high) // 2
        if stage.counts(middle)[source] >= cap:
            high = middle
        else:
            low = middle + 1
    return low


def smooth(
    knots: Sequence[tuple[float, Sequence[float]]], units_per_token: float, steps: int = 64
) -> list[tuple[int | None, list[float]]]:
    """Stages (units, weights) whose weights go linearly from knot to knot (tokens, weights); the last one stays."""
    stages: list[tuple[int | None, list[float]]] = []
    done = 0
    for (begin, old), (end, new) in pairwise(knots):
        for step in range(steps):
            middle = (step + 0.5) / steps
            until = round((begin + (end - begin) * (step + 1) / steps) * units_per_token)
            if until > done:
                stages.append(
                    (until - done, [a + (b - a) * middle for a, b in zip(_shares(old), _shares(new), strict=True)])
                )
                done = until
    return [*stages, (None, list(knots[-1][1]))]


def _shares(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    return [weight / total for weight in weights]
