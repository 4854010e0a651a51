"""Metadata at stream time: which document each token of a row is of, and a column's value of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.corpus import Corpus
from data.source import Piece
from data.stream import TokenStream

_SHARDS_CACHED = 64


@dataclass(frozen=True)
class Stretch:
    """Targets [place, place + size) of a row are tokens of one document, from its token `offset` on."""

    place: int
    size: int
    document: int
    offset: int


def stretches(corpus: Corpus, pieces: list[Piece]) -> Iterator[Stretch]:
    """The documents that the pieces of a row are of, in order."""
    for piece in pieces:
        at = 0
        while at < piece.size:
            document, offset = corpus.document_at(piece.start + at)
            start, tokens = corpus.place(document)
            size = min(piece.size - at, start + tokens - piece.start - at)
            yield Stretch(piece.place + at, size, document, offset)
            at += size


class ColumnReader:
    """One column of the documents of a stream; keeps those of a few shards."""

    def __init__(self, stream: TokenStream, name: str) -> None:
        self._stream, self._name = stream, name
        self._shards: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __call__(self, places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of `length` targets at these places [R]: (of, values). of: int64 [R, S + 1], which of the values belongs to
        each token; the first token counts as the second's document, padding as entry 0."""
        of = np.zeros((len(places), length + 1), np.int64)
        values: list[object] = [None]
        for row, place in enumerate(places.tolist()):
            source, pieces = self._stream.pieces(place, length)
            for stretch in stretches(self._stream.sources[source].corpus, pieces):
                of[row, 1 + stretch.place : 1 + stretch.place + stretch.size] = len(values)
                values.append(self._value(source, stretch.document))
            of[row, 0] = of[row, 1]
        return of, np.array(values, object)

    def _value(self, source: int, document: int) -> object:
        corpus = self._stream.sources[source].corpus
        shard, within = corpus.shard_of(document)
        found = self._shards.get((source, shard))
        if found is None:
            found = self._shards[source, shard] = corpus.columns(shard, [self._name])[self._name]
            if len(self._shards) > _SHARDS_CACHED:
                self._shards.popitem(last=False)
        value = found[within]
        return None if isinstance(value, float) and np.isnan(value) else value
