"""The proof that a run used each document as often as its recipe says.

What a run predicted is told as intervals on the line of each corpus, epoch by epoch. In a whole epoch the intervals must
not overlap and must add up to all the tokens there are: then every token was predicted exactly once. In a part of an
epoch they must not overlap: then none was predicted twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data.order import starts_of
from data.source import Source
from data.stream import BucketStream, Stream, TokenStream, past_skips_one

_UNITS_AT_ONCE = 1 << 20


@dataclass
class Usage:
    """How a source was used. times: epochs of it that were begun; whole: of those, the ones that were read whole. tokens:
    predicted in all. lengths, uses: of each document its tokens, and how many were predicted, int64 [documents]. faults:
    what must not be, in words."""

    source: Source
    name: str
    times: int = 0
    whole: int = 0
    tokens: int = 0
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        corpus = self.source.corpus
        self.lengths = np.concatenate([corpus.lengths(shard) for shard in range(corpus.shards)])
        self.uses = np.zeros(corpus.documents, np.int64)

    def rates(self) -> tuple[float, float]:
        """Least and most that a document (that passes the source's filter) was used, in times its tokens."""
        there = np.flatnonzero(self.uses)
        rates = self.uses[there] / self.lengths[there]
        least = 0.0 if len(there) < self.source.documents else float(rates.min(initial=np.inf))
        return least, float(rates.max(initial=0))


def audit(stream: TokenStream, names: list[str], end: int) -> list[Usage]:
    """How each source of a stream was used by a phase that read places [0, end)."""
    used = [Usage(source, name) for source, name in zip(stream.sources, names, strict=True)]
    for inner, first, ranges in _streams(stream, end):
        units, edges = _read(inner, ranges)
        for number, found in enumerate(units):
            usage, own = used[first + number], [edge for edge in edges if edge[0] == number]
            epochs = found // usage.source.units
            for epoch in sorted({*np.unique(epochs).tolist(), *(edge[1] for edge in own)}):
                positions = found[epochs == epoch] % usage.source.units
                _epoch(usage, epoch, positions, [edge for edge in own if edge[1] == epoch])
    return used


_Edge = tuple[int, int, np.ndarray, np.ndarray]
"""(source, epoch, starts, sizes) of what was read of a unit that was not read whole."""


def _epoch(usage: Usage, epoch: int, positions: np.ndarray, edges: list[_Edge]) -> None:
    """Adds one epoch's reading to the usage."""
    source = usage.source
    units = source.order(epoch, positions)
    if len(np.unique(units)) != len(units):
        usage.faults.append(f"epoch {epoch}: {len(units) - len(np.unique(units))} units were read more than once")
    parts = [
        source.layout.intervals(epoch, units[at : at + _UNITS_AT_ONCE]) for at in range(0, len(units), _UNITS_AT_ONCE)
    ]
    starts = np.concatenate([*(part[0] for part in parts), *(edge[2] for edge in edges)])
    sizes = np.concatenate([*(part[1] for part in parts), *(edge[3] for edge in edges)])
    order = np.argsort(starts, kind="stable")
    starts, sizes = starts[order], sizes[order]
    twice = np.flatnonzero(starts[1:] < starts[:-1] + sizes[:-1])
    if len(twice):
        usage.faults.append(f"epoch {epoch}: tokens at {int(starts[twice[0] + 1])} of the line were predicted twice")
    predicted = int(sizes.sum())
    usage.times += 1
    if len(positions) == source.units and not edges:
        usage.whole += 1
        if predicted != source.tokens:
            usage.faults.append(f"epoch {epoch}: {predicted:,} tokens were predicted of {source.tokens:,}")
    usage.tokens += predicted
    usage.uses += _by_document(usage.lengths, starts, sizes)


def _by_document(lengths: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Tokens of each document in some intervals, int64 [documents]: differences of how much lies before its ends."""
    ends, before = np.cumsum(lengths), starts_of(sizes)
    at = np.searchsorted(starts, ends, side="left")  # intervals that begin before each end
    last = np.maximum(at - 1, 0)
    beyond = np.where(at > 0, np.maximum(starts[last] + sizes[last] - ends, 0), 0) if len(starts) else 0
    return np.diff(before[at] - beyond, prepend=0)


def _streams(stream: TokenStream, end: int) -> Iterator[tuple[Stream, int, list[tuple[int, int]]]]:
    """(stream, number of its first source, ranges of its own line that were read)."""
    if isinstance(stream, Stream):
        yield stream, 0, _kept(stream.skips, past_skips_one(end, stream.skips) if end else 0)
        return
    assert isinstance(stream, BucketStream)
    first = 0
    for inner, ranges in zip(stream.streams, stream.read_of_each(end), strict=True):
        yield inner, first, ranges
        first += len(inner.sources)


def _kept(skips: tuple[tuple[int, int], ...], end: int) -> list[tuple[int, int]]:
    """[0, end) without what is skipped."""
    ranges, begin = [], 0
    for low, high in skips:
        if begin < min(low, end):
            ranges.append((begin, min(low, end)))
        begin = max(begin, high)
    return [*ranges, (begin, end)] if begin < end else ranges


def _read(stream: Stream, ranges: list[tuple[int, int]]) -> tuple[list[np.ndarray], list[_Edge]]:
    """Units of each source that were read whole, by index in the source's endless sequence, and what else was read."""
    whole: list[list[np.ndarray]] = [[np.zeros(0, np.int64)] for _ in stream.sources]
    edges: list[_Edge] = []
    for begin, end in ranges:
        low, high = -(-(begin + stream.offset) // stream.unit), (end + stream.offset) // stream.unit
        for at in range(low, high, _UNITS_AT_ONCE):
            sources, indices = stream.find(np.arange(at, min(high, at + _UNITS_AT_ONCE)))
            for number in np.unique(sources).tolist():
                whole[number].append(indices[sources == number])
        pieces = [
            (begin, min(end, low * stream.unit - stream.offset)),
            (max(begin, high * stream.unit - stream.offset), end),
        ]
        for start, stop in pieces if low <= high else [(begin, end)]:
            if start < stop:
                edges.append(_edge(stream, start, stop - start))
    return [np.concatenate(parts) for parts in whole], edges


def _edge(stream: Stream, start: int, count: int) -> _Edge:
    """Part of a unit: `count` tokens from place `start` of the line on."""
    unit, within = divmod(start + stream.offset, stream.unit)
    sources, indices = stream.find(np.array([unit]))
    source = stream.sources[int(sources[0])]
    found = source.layout.pieces(source.locate(indices)[0], within, count)
    starts, sizes = (
        np.array([piece.start for piece in found], np.int64),
        np.array([piece.size for piece in found], np.int64),
    )
    return int(sources[0]), int(indices[0]) // source.units, starts, sizes
