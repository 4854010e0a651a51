"""The stream: which tokens stand at which place of a run's data, as a function of (corpora, recipe, seed, place) alone.

Places count tokens to be predicted, from 0. The line of places is cut in units of `unit` tokens; unit g is drawn from a
source by the mixture (`data.mixture`), there it is a unit of an endless sequence (`data.source`), which an order puts
somewhere in the corpus (`data.order`). All of it is arithmetic, so a place far away costs what the first one costs,
and a place is all the state there is: a run that reads on from it reads the same at any number of processes, at any
batch size, whatever was prepared ahead.

Skipped ranges are passed over: place p of the run is place p + (what was skipped before it) of the line.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.mixture import Mixture
from data.prefetch import Prefetcher
from data.source import Piece, Source

__all__ = ["BucketStream", "Prefetcher", "Rows", "Stream", "TokenStream", "hash_of"]

_CHUNK = 256
_CHUNKS_CACHED = 64

Skips = tuple[tuple[int, int], ...]
"""Ranges [begin, end) of the line that are passed over, in tokens, ascending and apart."""


@dataclass(frozen=True)
class Rows:
    """Rows as packed. tokens: int64 [R, S + 1], row r predicts tokens[r, 1:] from tokens[r, :-1]; weights: float32 [R, S],
    how much each of them counts; sources: int64 [R], number of the source of each row."""

    tokens: np.ndarray
    weights: np.ndarray
    sources: np.ndarray


class TokenStream(Protocol):
    """What a run reads. fingerprint: hash of all that decides the sequence, but for what is skipped."""

    sources: list[Source]
    fingerprint: str
    skips: Skips

    def length_at(self, place: int, length: int) -> int:
        """Targets of the rows of the batch that begins at a place; `length` is what the recipe says."""

    def rows(self, places: np.ndarray, length: int) -> Rows:
        """Rows of `length` targets that begin at these places, int64 [R], multiples of `length`."""

    def consumed(self, place: int) -> list[int]:
        """Tokens of each source before a place, those of earlier phases and of skipped ranges included."""

    def pieces(self, place: int, length: int) -> tuple[int, list[Piece]]:
        """(source, which tokens of its corpus a row predicts)."""


class Stream:
    """Units of one size from one source or a mixture of several.

    mixture: None for a single source. begin: tokens of each source that earlier phases used; a mixture goes on with the
    next whole unit. skips: see the module.
    Methods may be called from several threads.
    """

    def __init__(
        self, sources: Sequence[Source], mixture: Mixture | None = None, *, begin: Sequence[int] = (), skips: Skips = ()
    ) -> None:
        assert sources and len({source.size for source in sources}) == 1
        assert mixture is not None or len(sources) == 1
        self.sources, self.mixture, self.unit, self.skips = list(sources), mixture, sources[0].size, skips
        self._begin = np.array(begin or [0] * len(sources), np.int64)
        self._units = -(-self._begin // self.unit)
        self.offset = int(self._begin[0]) if mixture is None else 0
        parts = [
            *(source.fingerprint for source in sources),
            mixture.fingerprint if mixture else "",
            self._begin.tolist(),
        ]
        self.fingerprint: str = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        self._chunks: OrderedDict[int, list[tuple[int, tuple[int, ...]]]] = OrderedDict()
        self._lock = threading.RLock()

    def length_at(self, place: int, length: int) -> int:
        return length

    def rows(self, places: np.ndarray, length: int) -> Rows:
        assert self.unit % length == 0, (self.unit, length)
        out = np.empty((len(places), length + 1), np.int64)
        weights = np.ones((len(places), length), np.float32)
        chosen = np.empty(len(places), np.int64)
        units, within = np.divmod(past_skips(places, self.skips) + self.offset, self.unit)
        with self._lock:
            for row, (unit, offset) in enumerate(zip(units.tolist(), within.tolist(), strict=True)):
                number, place = self._locate(unit)
                chosen[row] = number
                self.sources[number].layout.fill(place, offset, out[row], weights[row])
        return Rows(out, weights, chosen)

    def batch(self, place: int, rows: int, length: int) -> Rows:
        """Rows one after another from a place on."""
        return self.rows(place + np.arange(rows, dtype=np.int64) * length, length)

    def consumed(self, place: int) -> list[int]:
        line = past_skips_one(place, self.skips)
        if self.mixture is None:
            return [line + self.offset]
        counts = self.mixture.counts(-(-line // self.unit))
        return [(before + count) * self.unit for before, count in zip(self._units.tolist(), counts, strict=True)]

    def pieces(self, place: int, length: int) -> tuple[int, list[Piece]]:
        unit, within = divmod(past_skips_one(place, self.skips) + self.offset, self.unit)
        with self._lock:
            number, found = self._locate(unit)
            return number, self.sources[number].layout.pieces(found, within, length)

    def _locate(self, unit: int) -> tuple[int, tuple[int, ...]]:
        """(source, place in its layout). Units are looked up by the chunk: arithmetic on arrays costs little a number."""
        number, within = divmod(unit, _CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._chunks[number] = self._chunk(number)
            self._expect(number, chunk)
            if len(self._chunks) > _CHUNKS_CACHED:
                self._chunks.popitem(last=False)
        if within >= len(chunk):
            assert self.mixture is not None
            self.mixture.place(np.array([unit]))  # says that it is spent
        return chunk[within]

    def find(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(source, index in its endless sequence) of units of the line, int64 [n] each."""
        if self.mixture is None:
            return np.zeros(len(units), np.int64), units
        sources, indices = self.mixture.place(units)
        return sources, indices + self._units[sources]

    def _expect(self, number: int, chunk: list[tuple[int, tuple[int, ...]]]) -> None:
        """Tell corpora that lie elsewhere what this chunk and the next will read of them."""
        if all(source.corpus.local for source in self.sources):
            return
        coming = chunk + self._chunk(number + 1)
        for index, source in enumerate(self.sources):
            source.layout.expect([place for owner, place in coming if owner == index])

    def _chunk(self, number: int) -> list[tuple[int, tuple[int, ...]]]:
        units = np.arange(number * _CHUNK, (number + 1) * _CHUNK)
        if self.mixture is not None:
            units = units[units < self.mixture.units]
        sources, indices = self.find(units)
        found: list[tuple[int, tuple[int, ...]]] = [(0, ())] * len(units)
        for source in np.unique(sources).tolist():
            rows = np.flatnonzero(sources == source)
            places = self.sources[source].locate(indices[rows])
            for row, place in zip(rows.tolist(), places, strict=True):
                found[row] = (source, place)
        return found


class BucketStream:
    """Batches of rows of several lengths, every row from one document (Dataset Decomposition, arXiv 2405.13226).

    The line is cut in chunks of `chunk` tokens, a batch or a part of one; each chunk is of one bucket, by a mixture of
    buckets. streams: a stream of each length; chunk: a multiple of every length.
    """

    def __init__(self, streams: dict[int, Stream], mixture: Mixture, chunk: int, *, skips: Skips = ()) -> None:
        assert all(chunk % length == 0 for length in streams)
        self._lengths, self.streams, self._mixture, self._chunk = list(streams), list(streams.values()), mixture, chunk
        self.skips = skips
        self.sources = [source for stream in self.streams for source in stream.sources]
        parts = [*(stream.fingerprint for stream in self.streams), mixture.fingerprint, chunk]
        self.fingerprint: str = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def length_at(self, place: int, length: int) -> int:
        return self._lengths[self._bucket(place)[0]]

    def rows(self, places: np.ndarray, length: int) -> Rows:
        buckets, inner = self._buckets(places)
        bucket = int(buckets[0])
        found = self.streams[bucket].rows(inner, length)
        return Rows(found.tokens, found.weights, found.sources + self._first_source(bucket))

    def consumed(self, place: int) -> list[int]:
        chunks, within = divmod(past_skips_one(place, self.skips), self._chunk)
        counts = self._mixture.counts(chunks)
        bucket = self._bucket(place)[0] if within else -1
        tokens = [count * self._chunk + (within if i == bucket else 0) for i, count in enumerate(counts)]
        return [used for stream, size in zip(self.streams, tokens, strict=True) for used in stream.consumed(size)]

    def pieces(self, place: int, length: int) -> tuple[int, list[Piece]]:
        bucket, inner = self._bucket(place)
        source, found = self.streams[bucket].pieces(inner, length)
        return source + self._first_source(bucket), found

    def read_of_each(self, end: int) -> list[list[tuple[int, int]]]:
        """Ranges of each stream's line that places [0, end) read: always one from its beginning, but for skips."""
        counts: list[list[tuple[int, int]]] = [[] for _ in self.streams]
        for place in range(0, end, self._chunk):
            bucket, inner = self._bucket(place)
            size = min(self._chunk, end - place)
            ranges = counts[bucket]
            if ranges and ranges[-1][1] == inner:
                ranges[-1] = (ranges[-1][0], inner + size)
            else:
                ranges.append((inner, inner + size))
        return counts

    def _bucket(self, place: int) -> tuple[int, int]:
        """(bucket, place within its stream)."""
        buckets, inner = self._buckets(np.array([place]))
        return int(buckets[0]), int(inner[0])

    def _buckets(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`_bucket` of places, int64 [n] each."""
        chunks, within = np.divmod(past_skips(places, self.skips), self._chunk)
        buckets, indices = self._mixture.place(chunks)
        return buckets, indices * self._chunk + within

    def _first_source(self, bucket: int) -> int:
        return sum(len(stream.sources) for stream in self.streams[:bucket])


def past_skips(places: np.ndarray, skips: Skips) -> np.ndarray:
    """Places of a run as places of the line, int64 [n]: past everything that is skipped before them."""
    line = places.astype(np.int64)
    for begin, end in skips:
        line = line + (line >= begin) * (end - begin)
    return line


def past_skips_one(place: int, skips: Skips) -> int:
    """`past_skips` of one place."""
    return int(past_skips(np.array([place]), skips)[0])


def hash_of(array: np.ndarray) -> str:
    """A short hash of an array of ids: equal for equal shape and values, whatever the integer type."""
    same = np.ascontiguousarray(array, dtype=np.int64)
    return hashlib.blake2b(str(same.shape).encode() + same.tobytes(), digest_size=8).hexdigest()
