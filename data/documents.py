"""A corpus read document by document, in storage order: what orderings, statistics and pictures look at.

A document's number is its place in storage order within its split. Columns are those of the shards' metadata (source,
path, row, bytes and whatever else the build recorded) and, as `ordering.column`, those that an ordering of the corpus
left beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.config import DataError
from data.corpus import Corpus
from data.metadata import BASE

ORDERS = "orders"
"""Where, within a corpus, its orderings are."""

CHUNK_TOKENS, CHUNK_DOCUMENTS = 1 << 20, 1 << 14


@dataclass(frozen=True)
class Chunk:
    """Neighbouring documents. first: number of the first. tokens int64 [T]; ends int64 [D], exclusive, in tokens."""

    first: int
    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, index: int) -> np.ndarray:
        """Tokens of one of the documents, its end-of-document token included."""
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]


class Documents:
    """One split of a corpus, also of one at a URL or over tars of others."""

    def __init__(self, path: Path | str, split: str = "train") -> None:
        self._corpus = Corpus(path, split)
        self.path, self.split = self._corpus.path, split
        self.manifest, self.shards = self._corpus.manifest, self._corpus.contents.shards
        self.documents, self.tokens, self.bytes = (
            self._corpus.documents,
            self._corpus.tokens,
            self._corpus.contents.bytes,
        )

    def __len__(self) -> int:
        return self.documents

    def chunks(self, every: int = 1) -> Iterator[Chunk]:
        """All documents in order, some at a time; or every so many-th chunk alone."""
        number = 0
        for shard, (start, first) in enumerate(
            zip(self._corpus.shard_starts.tolist(), self._corpus.document_starts.tolist(), strict=True)
        ):
            if shard == self._corpus.shards:
                return
            ends = np.cumsum(self._corpus.lengths(shard))
            for low, high in _cuts(ends):
                if number % every == 0:
                    before = int(ends[low - 1]) if low else 0
                    tokens = np.empty(int(ends[high - 1]) - before, np.int64)
                    self._corpus.read(start + before, tokens)
                    yield Chunk(first + low, tokens, ends[low:high] - before)
                number += 1

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, int64, its end-of-document token included."""
        return self._corpus.document(number)

    def lengths(self) -> np.ndarray:
        """Tokens of every document, its end-of-document token included, int64 [documents]."""
        parts = [self._corpus.lengths(shard) for shard in range(self._corpus.shards)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def starts(self) -> np.ndarray:
        """Where each document begins in the split's tokens, and where the last ends, int64 [documents + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths())])

    def columns(self) -> dict[str, str]:
        """Names and types (`int`, `float`, `str`, `bool`) of all columns, those of orderings included."""
        found = {**BASE, **self.manifest.columns}
        for file in sorted((self.path / ORDERS).glob(f"*/{self.split}.columns.parquet")):
            for field in pq.read_schema(file):
                found[f"{file.parent.name}.{field.name}"] = "int" if pa.types.is_integer(field.type) else "float"
        return found

    def is_number(self, column: str) -> bool:
        """Whether a column of that name holds numbers."""
        return self.columns().get(column) in ("int", "float")

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, float64 [documents], NaN where a document has none; DataError when it is of words."""
        if not self.is_number(column):
            kind = self.columns().get(column)
            wrong = f"holds {kind}, not numbers" if kind else "is not there"
            names = [name for name in self.columns() if self.is_number(name)]
            raise DataError(f"column {column} of {self.path} {wrong}; choose one of {', '.join(names)}")
        return np.concatenate([np.asarray(part, np.float64) for part in self._parts(column)])

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column of words: int32 [documents] places in the sorted list of different ones, -1 where there is none."""
        seen: dict[str, int] = {}
        codes = [
            np.array(
                [-1 if word is None else seen.setdefault(str(word), len(seen)) for word in part.tolist()], np.int64
            )
            for part in self._parts(column)
        ]
        words = sorted(seen)
        rank = np.full(len(seen) + 1, -1, np.int32)  # the last is that of -1
        rank[[seen[word] for word in words]] = np.arange(len(words))
        return rank[np.concatenate([np.zeros(0, np.int64), *codes])], words

    def _parts(self, column: str) -> Iterator[np.ndarray]:
        """A column, shard by shard."""
        if column in BASE or column in self.manifest.columns:
            for shard in range(self._corpus.shards):
                yield self._corpus.columns(shard, [column])[column]
            return
        order, _, name = column.partition(".")
        file = self.path / ORDERS / order / f"{self.split}.columns.parquet"
        if not file.exists():
            raise DataError(f"column {column} is not in {self.path}; choose one of {', '.join(self.columns())}")
        yield pq.read_table(file, columns=[name])[name].to_numpy()


def _cuts(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Documents of a shard, which end there, as ranges of about CHUNK_TOKENS tokens and at most CHUNK_DOCUMENTS."""
    low, count = 0, len(ends)
    while low < count:
        before = int(ends[low - 1]) if low else 0
        high = int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right"))
        high = min(max(high, low + 1), low + CHUNK_DOCUMENTS)
        yield low, high
        low = high
