"""A split of a corpus as one line of tokens that can be read at any place, and as a list of documents.

The line is the split in storage order: shard after shard, document after document, each ending with `eod`. Opening
reads the manifest alone; a shard is mapped, and its index read, when something of it is wanted. So memory is a few
numbers a shard, whatever the corpus holds, and at most OPEN_SHARDS shards are mapped at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from pathlib import Path
from typing import Protocol

import numpy as np

from data.access import Access
from data.cache import Held
from data.config import DataError
from data.manifest import Manifest, Split
from data.order import starts_of
from data.remote import open_location
from data.shards import OPEN_SHARDS
from data.stream_config import CacheConfig


class ShardLine(Protocol):
    """The documents of one shard, one after another, whatever the shard's format."""

    def read(self, start: int, out: np.ndarray) -> int:
        """Tokens of the shard from `start` on into int64 `out`; how many there were, fewer than asked at its end."""

    def lengths(self) -> np.ndarray:
        """Tokens of each document, `eod` included, int64 [documents]."""


class Corpus:
    """One split of a corpus.

    path: directory, or a URL (cache: how its shards are kept here). split: `train` or `validation`. tokens, documents: of
    the split. vocab_size, eod: of its tokenizer. shard_starts: where each shard begins on the line of tokens;
    document_starts: number of its first document; both int64 [shards + 1]. DataError for a corpus that is not whole.
    """

    def __init__(self, path: Path | str, split: str, cache: CacheConfig | None = None) -> None:
        place = open_location(path, cache)
        self.path, self.split = place.directory, split
        self.manifest = Manifest.load(self.path)
        if split not in self.manifest.splits:
            raise DataError(f"{path}: no split {split!r}; it has {', '.join(self.manifest.splits)}")
        self.contents: Split = self.manifest.splits[split]
        self.tokens, self.documents = self.contents.tokens, self.contents.documents
        self.vocab_size, self.eod = self.manifest.vocab_size, self.manifest.eod
        self.shard_starts = starts_of([shard.tokens for shard in self.contents.shards])
        self.document_starts = starts_of([shard.documents for shard in self.contents.shards])
        self._starts: list[int] = self.shard_starts.tolist()
        self._access = Access(place, self.manifest, self.contents.shards, self._close_one)
        self._open: OrderedDict[int, tuple[ShardLine, Held]] = OrderedDict()
        self._document_ends: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def local(self) -> bool:
        """Whether all shards are on this machine as they are, not in a cache."""
        return self._access.local

    @property
    def shards(self) -> int:
        return len(self.contents.shards)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token."""
        return self.contents.bytes / self.tokens

    def read(self, start: int, out: np.ndarray) -> None:
        """Tokens [start, start + len(out)) of the line into int64 `out`."""
        assert start >= 0 and start + len(out) <= self.tokens
        number = bisect_right(self._starts, start) - 1
        filled = self.shard(number).read(start - self._starts[number], out)
        while filled < len(out):
            number += 1
            filled += self.shard(number).read(0, out[filled:])

    def shard(self, number: int) -> ShardLine:
        """A shard, mapped; the one that was not used for longest is closed."""
        opened = self._open.get(number)
        if opened is None:
            opened = self._open[number] = self._access.open(self.contents.shards[number])
            if len(self._open) > self._access.most_open:
                self._close_one()
        else:
            self._open.move_to_end(number)
        return opened[0]

    def expect(self, places: np.ndarray) -> None:
        """These places of the line will be read next, int64 [n], in this order: shards from elsewhere are fetched ahead."""
        numbers = np.searchsorted(self.shard_starts, places, side="right") - 1
        self._access.expect(dict.fromkeys(numbers.tolist()))

    def lengths(self, shard: int) -> np.ndarray:
        """Tokens of each document of a shard, `eod` included, int64 [documents]."""
        return self.shard(shard).lengths()

    def shard_of(self, document: int) -> tuple[int, int]:
        """(shard, place among its documents) of a document."""
        number = int(np.searchsorted(self.document_starts, document, side="right")) - 1
        return number, document - int(self.document_starts[number])

    def place(self, document: int) -> tuple[int, int]:
        """Where on the line a document is: (start, tokens)."""
        number, within = self.shard_of(document)
        ends = self._ends(number)
        start = int(ends[within - 1]) if within else 0
        return self._starts[number] + start, int(ends[within]) - start

    def document(self, number: int) -> np.ndarray:
        """Tokens of a document, int64 [tokens], `eod` at the end."""
        start, count = self.place(number)
        out = np.empty(count, np.int64)
        self.read(start, out)
        return out

    def document_at(self, position: int) -> tuple[int, int]:
        """(document, offset in it) of a place on the line."""
        number = bisect_right(self._starts, position) - 1
        ends = self._ends(number)
        within = int(np.searchsorted(ends, position - self._starts[number], side="right"))
        start = int(ends[within - 1]) if within else 0
        return int(self.document_starts[number]) + within, position - self._starts[number] - start

    def columns(self, shard: int, names: list[str]) -> dict[str, np.ndarray]:
        """Metadata of the documents of a shard, an array [documents] each."""
        return self._access.columns(self.contents.shards[shard], names)

    def verify(self) -> None:
        """Reads every shard whole and compares checksums; DataError names the first that differs."""
        self._access.verify()

    def check_present(self) -> None:
        """Opens every shard on this machine; DataError names one that is missing or not of its recorded size."""
        self._access.check_present()

    def _ends(self, shard: int) -> np.ndarray:
        ends = self._document_ends.get(shard)
        if ends is None:
            ends = self._document_ends[shard] = np.cumsum(self.lengths(shard))
            if len(self._document_ends) > OPEN_SHARDS:
                self._document_ends.popitem(last=False)
        else:
            self._document_ends.move_to_end(shard)
        return ends

    def _close_one(self) -> bool:
        """Lets go of the open shard that was not used for longest; whether there was one."""
        if not self._open:
            return False
        self._open.popitem(last=False)[1][1].close()
        return True
