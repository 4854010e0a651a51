"""A corpus read document by document, in storage order: what orderings, statistics and pictures look at.

A document's number is its place in storage order within its split. Columns are those of the shards' metadata (source,
path, row, bytes and whatever else the build recorded) and, as `ordering.column`, those that an ordering of the corpus
left beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.config import DataError
from data.manifest import Manifest
from data.shards import Blocks

ORDERS = "orders"
"""Where, within a corpus, its orderings are."""

CHUNK_TOKENS, CHUNK_DOCUMENTS = 1 << 20, 1 << 14


@dataclass(frozen=True)
class Chunk:
    """Neighbouring documents. first: number of the first. tokens [T] as stored; ends int64 [D], exclusive, in tokens."""

    first: int
    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def document(self, index: int) -> np.ndarray:
        """Tokens of one of the documents, its end-of-document token included."""
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]


class Documents:
    """One split of a corpus. Opening checks that every shard and index is there with its recorded size."""

    def __init__(self, path: Path | str, split: str = "train") -> None:
        self.path, self.split = Path(path), split
        self.manifest = Manifest.load(self.path)
        if split not in self.manifest.splits:
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(self.manifest.splits)}")
        found = self.manifest.splits[split]
        self.shards = found.shards
        self._blocks = Blocks(self.path, found, self.manifest.dtype)
        self.documents, self.tokens, self.bytes = found.documents, found.tokens, found.bytes
        self._first: np.ndarray | None = None

    def __len__(self) -> int:
        return self.documents

    def chunks(self, blocks: Sequence[int] | None = None) -> Iterator[Chunk]:
        """All documents in order, some blocks at a time; or those of the blocks named, each by itself."""
        if blocks is not None:
            for block in blocks:
                yield Chunk(int(self._firsts()[block]), self._blocks.tokens(block), self._blocks.ends(block))
            return
        first, tokens, ends, held = 0, [], [], 0
        for block in range(len(self._blocks)):
            tokens.append(self._blocks.tokens(block))
            ends.append(self._blocks.ends(block) + held)
            held += len(tokens[-1])
            full = held >= CHUNK_TOKENS or sum(map(len, ends)) >= CHUNK_DOCUMENTS
            if full or block == len(self._blocks) - 1:
                chunk = Chunk(first, np.concatenate(tokens), np.concatenate(ends))
                yield chunk
                first, tokens, ends, held = first + len(chunk), [], [], 0

    @property
    def blocks(self) -> int:
        """How many blocks hold the documents."""
        return len(self._blocks)

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, as stored, its end-of-document token included."""
        block = int(np.searchsorted(self._firsts(), number, side="right")) - 1
        chunk = Chunk(int(self._firsts()[block]), self._blocks.tokens(block), self._blocks.ends(block))
        return chunk.document(number - chunk.first)

    def lengths(self) -> np.ndarray:
        """Tokens of every document, its end-of-document token included, int64 [documents]."""
        parts = [np.diff(self._blocks.ends(block), prepend=0) for block in range(len(self._blocks))]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def starts(self) -> np.ndarray:
        """Where each document begins in the split's tokens, and where the last ends, int64 [documents + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths())])

    def _firsts(self) -> np.ndarray:
        """Number of the first document of each block, int64 [blocks]."""
        if self._first is None:
            sizes = [len(self._blocks.ends(block)) for block in range(len(self._blocks))]
            self._first = np.cumsum([0, *sizes])[:-1]
        return self._first

    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of all columns, those of orderings included."""
        found = {field.name: field.type for field in self._schema()}
        for file in sorted((self.path / ORDERS).glob(f"*/{self.split}.columns.parquet")):
            found |= {f"{file.parent.name}.{field.name}": field.type for field in pq.read_schema(file)}
        return found

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers, float64 [documents], NaN where a document has none; DataError when it is of words."""
        values = self._column(column)
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise DataError(f"column {column} of {self.path} holds {values.type}, not numbers; {self._choices(True)}")
        return np.asarray(values.cast(pa.float64()).fill_null(float("nan")).to_numpy(), np.float64)

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """A column of words: int32 [documents] places in the sorted list of different ones, -1 where there is none."""
        coded = self._column(column).cast(pa.string()).combine_chunks().dictionary_encode()
        if isinstance(coded, pa.ChunkedArray):
            coded = coded.unify_dictionaries().combine_chunks()
        words = coded.dictionary.to_pylist()
        place = np.argsort(np.argsort(np.array(words, dtype=object), kind="stable")) if words else np.zeros(0, np.int64)
        codes = np.asarray(coded.indices.fill_null(-1).to_numpy(zero_copy_only=False), np.int32)
        return np.where(codes < 0, -1, np.append(place, -1)[codes]).astype(np.int32), sorted(words)

    def is_number(self, column: str) -> bool:
        """Whether a column of that name holds numbers."""
        kind = self.columns().get(column)
        return kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind))

    def _column(self, column: str) -> pa.ChunkedArray:
        if column not in self.columns():
            raise DataError(f"column {column} is not in {self.path}; {self._choices()}")
        if column not in self._schema().names:
            order, _, name = column.partition(".")
            return pq.read_table(self.path / ORDERS / order / f"{self.split}.columns.parquet", columns=[name])[name]
        return pa.concat_tables(self._tables([column]), promote_options="permissive")[column]

    def _schema(self) -> pa.Schema:
        """Columns of the shards, which all have the same."""
        try:
            return pq.read_schema(self.path / self.shards[0].meta_file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path / self.shards[0].meta_file}: cannot be read ({error})") from error

    def _choices(self, numeric: bool = False) -> str:
        names = [name for name in self.columns() if not numeric or self.is_number(name)]
        return f"choose one of {', '.join(names) or 'none'}"

    def _tables(self, names: list[str] | None) -> Iterator[pa.Table]:
        """Metadata of the documents of each shard."""
        for shard in self.shards:
            file = self.path / shard.meta_file
            try:
                yield pq.read_table(file, columns=names)
            except (OSError, pa.ArrowException) as error:
                raise DataError(
                    f"{file}: cannot be read ({error}); copy the corpus again, or build it again"
                ) from error
