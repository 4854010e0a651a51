"""A source: one corpus, filtered, packed and put in order; an endless sequence of units of one size.

Unit k is unit k mod n of epoch k div n. Every epoch has each unit once, in a keyed order of its own. A unit holds at
most `size` tokens that are to be predicted; with it come the tokens before them that they are predicted from:

    row      [before, t1, …, tS]      before: the token that stands before t1 in its document, `eod` at a beginning
    weights  [w1, …, wS]              0 where the row is filled up with `eod`, and for a token whose context is elsewhere

So every token of every document is predicted once an epoch, by whatever packing. Two kinds of layout:

Cut      concatenate-and-cut over the stored line: arithmetic alone. Each epoch begins its cuts elsewhere.
Planned  everything else, from the pieces of a `data.plan.Plan`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.corpus import Corpus
from data.order import ORDER_VERSION, UnitOrder, key, mix, starts_of
from data.plan import Plan, PlanSpec, open_plan
from data.progress import Progress

_CELL_UNITS = 1024
"""A cell (stretch of whole shards that is cut by itself, its last unit filled up) has about as many units or more."""


@dataclass(frozen=True)
class Piece:
    """Tokens [start, start + size) of a corpus's line, at `place` of the row's targets."""

    start: int
    size: int
    place: int


class Layout(Protocol):
    """Where units lie. cells: int64 [cells], units of each."""

    cells: np.ndarray

    def locate(self, epoch: int, units: np.ndarray) -> list[tuple[int, ...]]:
        """What `fill` needs to know of each unit."""

    def expect(self, places: list[tuple[int, ...]]) -> None:
        """These will be filled next, in this order."""

    def fill(self, place: tuple[int, ...], within: int, row: np.ndarray, weights: np.ndarray) -> None:
        """Writes a row (int64 [S + 1]) and weights (float32 [S], ones before) from target `within` of the unit on."""

    def pieces(self, place: tuple[int, ...], within: int, length: int) -> list[Piece]:
        """Which tokens of the corpus such a row predicts."""

    def intervals(self, epoch: int, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(starts, sizes) on the corpus's line of all that whole units predict, int64 [pieces] each, in any order."""


class Cut:
    """Concatenate-and-cut: cell c is [starts[c], starts[c + 1]) of the line, read in a circle from a keyed place on."""

    def __init__(self, corpus: Corpus, size: int, seed: int | None) -> None:
        self._corpus, self._size, self._seed = corpus, size, seed
        self._starts = _cells(corpus, size)
        self._sizes = np.diff(self._starts)
        self.cells = -(-self._sizes // size)
        self._first = starts_of(self.cells)

    def locate(self, epoch: int, units: np.ndarray) -> list[tuple[int, ...]]:
        """(where the cell begins, its tokens, where in its circle the unit begins, tokens of the unit)."""
        return list(zip(*(part.tolist() for part in self._places(epoch, units)), strict=True))

    def intervals(self, epoch: int, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        start, size, begin, count = self._places(epoch, units)
        first = np.minimum(count, size - begin)
        starts, sizes = np.concatenate([start + begin, start]), np.concatenate([first, count - first])
        return starts[sizes > 0], sizes[sizes > 0]

    def _places(self, epoch: int, units: np.ndarray) -> tuple[np.ndarray, ...]:
        cell = np.searchsorted(self._first, units, side="right") - 1
        start, size = self._starts[cell], self._sizes[cell]
        offset = (units - self._first[cell]) * self._size
        turn = np.zeros(len(units), np.int64)
        if self._seed is not None:
            hashed = mix(cell.astype(np.uint64), key("turn", self._seed, epoch))
            turn = (hashed % size.astype(np.uint64)).astype(np.int64)
        count = np.minimum(self._size, size - offset)
        return start, size, (offset + turn) % size, count

    def expect(self, places: list[tuple[int, ...]]) -> None:
        self._corpus.expect(np.array([start + begin for start, _, begin, _ in places], np.int64))

    def fill(self, place: tuple[int, ...], within: int, row: np.ndarray, weights: np.ndarray) -> None:
        start, size, begin, count = place
        at = begin + within - 1
        # most rows are full, and do not go around the circle's end
        if within + len(weights) <= count and 0 <= at <= size - len(row):
            self._corpus.read(start + at, row)
            return
        count = max(0, min(count - within, len(weights)))
        at %= size
        first = min(count + 1, size - at)
        self._corpus.read(start + at, row[:first])
        if first <= count:
            self._corpus.read(start, row[first : count + 1])
        if count < len(weights):
            row[count + 1 :] = self._corpus.eod
            weights[count:] = 0

    def pieces(self, place: tuple[int, ...], within: int, length: int) -> list[Piece]:
        start, size, begin, count = place
        count = max(0, min(count - within, length))
        at = (begin + within) % size
        first = min(count, size - at)
        found = [Piece(start + at, first, 0), Piece(start, count - first, first)]
        return [piece for piece in found if piece.size]


class Planned:
    """Units as a plan has them."""

    def __init__(self, corpus: Corpus, plan: Plan) -> None:
        self._corpus, self._plan = corpus, plan
        self.cells = np.diff(plan.cells)

    def locate(self, epoch: int, units: np.ndarray) -> list[tuple[int, ...]]:
        """(first piece, last piece + 1)."""
        first = self._plan.first
        return list(zip(first[units].tolist(), first[units + 1].tolist(), strict=True))

    def intervals(self, epoch: int, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._plan.first[units], self._plan.first[units + 1]
        counts = high - low
        pieces = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(int(counts.sum()))
        return self._plan.starts[pieces], np.abs(self._plan.sizes[pieces]).astype(np.int64)

    def expect(self, places: list[tuple[int, ...]]) -> None:
        self._corpus.expect(self._plan.starts[[first for first, _ in places]])

    def fill(self, place: tuple[int, ...], within: int, row: np.ndarray, weights: np.ndarray) -> None:
        row[0] = self._corpus.eod
        end = 0
        for start, size, at, fresh in self._cut(place, within, len(weights)):
            if at == 0 and not fresh:
                self._corpus.read(start - 1, row[: 1 + size])
            else:
                self._corpus.read(start, row[1 + at : 1 + at + size])
                if not fresh:  # what stands before it in the row is another document
                    weights[at] = 0
            end = at + size
        row[1 + end :] = self._corpus.eod
        weights[end:] = 0

    def pieces(self, place: tuple[int, ...], within: int, length: int) -> list[Piece]:
        return [Piece(start, size, at) for start, size, at, _ in self._cut(place, within, length)]

    def _cut(self, place: tuple[int, ...], within: int, length: int) -> list[tuple[int, int, int, bool]]:
        """(place on the line, tokens, place in the row, whether it begins its document) of the row's pieces."""
        low, high = place
        found, begin = [], -within
        for start, signed in zip(
            self._plan.starts[low:high].tolist(), self._plan.sizes[low:high].tolist(), strict=True
        ):
            size, skip = abs(signed), max(0, -begin)
            end = min(size, length - begin)
            if skip < end:
                found.append((start + skip, end - skip, begin + skip, signed > 0 and not skip))
            begin += size
        return found


class Source:
    """units: of an epoch. size: targets of a unit. tokens: of an epoch, all passing documents once. fingerprint: hash of
    all that decides the sequence; two sources with one fingerprint are equal everywhere.

    shuffle, window: as in `data.order.UnitOrder`; `none` also cuts every epoch alike.
    """

    def __init__(
        self,
        corpus: Corpus,
        spec: PlanSpec,
        seed: int,
        *,
        shuffle: str = "global",
        window: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.corpus, self.size = corpus, spec.size
        self.layout: Layout
        if spec.method == "cut" and not spec.where and not spec.ordering:
            self.layout = Cut(corpus, spec.size, None if shuffle == "none" else seed)
            self.tokens, self.documents = corpus.tokens, corpus.documents
        else:
            plan = open_plan(corpus, spec, progress)
            self.layout = Planned(corpus, plan)
            self.tokens, self.documents = plan.tokens, plan.documents
        self.order = UnitOrder(self.layout.cells, shuffle, window, seed)
        self.units = self.order.units
        decides = (corpus.manifest.fingerprint, corpus.split, spec, shuffle, shuffle == "window" and window)
        text = repr((*decides, shuffle != "none" and seed, ORDER_VERSION))
        self.fingerprint: str = hashlib.sha256(text.encode()).hexdigest()[:32]

    def locate(self, units: np.ndarray) -> list[tuple[int, ...]]:
        """Places of units of the endless sequence, for the layout's `fill`."""
        epochs, positions = np.divmod(units, self.units)
        found: list[tuple[int, ...]] = [()] * len(units)
        for epoch in np.unique(epochs):
            rows = np.flatnonzero(epochs == epoch)
            places = self.layout.locate(int(epoch), self.order(int(epoch), positions[rows]))
            for row, place in zip(rows.tolist(), places, strict=True):
                found[row] = place
        return found


def _cells(corpus: Corpus, size: int) -> np.ndarray:
    """Borders of the cells on the line: whole shards, as many as it takes."""
    borders = [0]
    for end in corpus.shard_starts[1:].tolist():
        if end - borders[-1] >= _CELL_UNITS * size:
            borders.append(end)
    if len(borders) == 1:
        borders.append(corpus.tokens)
    borders[-1] = corpus.tokens  # a short rest belongs to the cell before it
    return np.array(borders, np.int64)
