"""Documents that hold parts of test sets, found by runs of words in common (Brown et al. 2020, arXiv 2005.14165, appendix C).

Words are compared without case, and what stands between them is not looked at. Runs of 13 words are GPT-3's longest; test texts
of fewer words are matched as a whole, down to a least length, below which matches mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.clean.base import Dropped, Outcome, Seams, Step, with_columns
from data.clean.words import Texts, Words
from data.compression import open_bytes
from data.config import DataError
from data.document import Document

_TABLE_BITS = 24  # of the table that answers for most runs that they are in no test set: 16 MiB
_SHOWN = 160  # characters of a match that are told


@dataclass(frozen=True)
class DecontaminateConfig:
    """Finds documents that hold parts of test sets; writes columns test_overlap (share of words) and test_set, and drops."""

    name: ClassVar[str] = "decontaminate"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("test_overlap", "test_set")

    files: tuple[str, ...]
    """Test sets: .jsonl (a test text in each of `fields`), or text (the file is one test text); also .gz and .zst."""

    fields: tuple[str, ...] = ("text",)
    """Keys of a JSON line that hold text; those that a line lacks are passed over, but each file must have some."""

    ngram: int = 13
    """Words in a row that make a match."""

    min_words: int = 8
    """Test texts of fewer than `ngram` words are matched as a whole where they have at least this many words."""

    max_share: float = 0.0
    """Drop documents with a larger share of their words in matches; 0 = every document with a match, 1 = none, so that
    the columns may decide later."""

    def __post_init__(self) -> None:
        if not self.files:
            raise DataError("files = []: name at least one test set")
        if not 1 <= self.min_words <= self.ngram:
            raise DataError(f"min_words = {self.min_words}: it must be between 1 and ngram = {self.ngram}")
        if not 0 <= self.max_share <= 1:
            raise DataError(f"max_share = {self.max_share}: it must be between 0 and 1")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files whose contents decide the result."""
        return self.files

    def make(self, seams: Seams) -> Step:
        return _Decontaminate(self)


class _Decontaminate:
    def __init__(self, config: DecontaminateConfig) -> None:
        self.config = config
        self.names = [Path(file).name for file in config.files]
        self.sets = TestSets(config)

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        texts = Texts([document.text for document in documents])
        words = Words(texts)
        covered = np.zeros(len(words.hashes), dtype=bool)
        match: dict[int, tuple[int, int, int, int]] = {}  # document -> first match: word, words, file, row
        for size in self.sets.sizes:
            first, entry = self.sets.find(words, size)
            for place in range(size):
                covered[first + place] = True
            for word, file, row in zip(first.tolist(), *self.sets.where(size, entry), strict=True):
                found = match.get(place := int(words.text[word]))
                if found is None or word < found[0]:
                    match[place] = (word, size, file, row)
        shares = np.bincount(words.text[covered], minlength=len(documents)) / np.maximum(words.per_text, 1)
        return [
            self._one(document, share, match.get(place), texts, words)
            for place, (document, share) in enumerate(zip(documents, shares.tolist(), strict=True))
        ]

    def _one(
        self, document: Document, share: float, match: tuple[int, int, int, int] | None, texts: Texts, words: Words
    ) -> Outcome:
        name = None if match is None else self.names[match[2]]
        tagged = with_columns(document, {"test_overlap": share, "test_set": name})
        if match is None or (share <= self.config.max_share and self.config.max_share > 0):
            return tagged
        word, size, _, row = match
        codes = texts.codes[words.starts[word] : words.ends[word + size - 1]][:_SHOWN]
        return Dropped(tagged, f"in test set {name}", f"row {row}: {''.join(map(chr, codes))}")


class TestSets:
    """Runs of words of all test texts, by length. sizes: the lengths that occur, ascending."""

    __test__ = False  # no class of tests, whatever its name begins with

    def __init__(self, config: DecontaminateConfig) -> None:
        rows: dict[int, list[tuple[np.ndarray, int, int]]] = {}
        for number, file in enumerate(config.files):
            for row, text in _test_texts(file, config.fields):
                words = Words(Texts([text]))
                size = min(config.ngram, len(words.hashes))
                if size >= config.min_words:
                    rows.setdefault(size, []).append((words.ngrams(size)[0], number, row))
        self.sizes = sorted(rows)
        self._runs = {size: self._index(entries) for size, entries in rows.items()}

    @staticmethod
    def _index(entries: list[tuple[np.ndarray, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(sorted hashes, file and row of each, table of what their first bits may be)."""
        counts = [len(hashes) for hashes, _, _ in entries]
        hashes, first = np.unique(np.concatenate([hashes for hashes, _, _ in entries]), return_index=True)
        files = np.repeat([file for _, file, _ in entries], counts)[first]
        rows = np.repeat([row for _, _, row in entries], counts)[first]
        table = np.zeros(1 << _TABLE_BITS, dtype=bool)
        table[hashes >> np.uint64(64 - _TABLE_BITS)] = True
        return hashes, files, rows, table

    def find(self, words: Words, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(first word of each matching run, place of the run in the index), in the order of the words."""
        known, _, _, table = self._runs[size]
        found, first = words.ngrams(size)
        maybe = np.flatnonzero(table[found >> np.uint64(64 - _TABLE_BITS)])
        entry = np.minimum(np.searchsorted(known, found[maybe]), len(known) - 1)
        sure = known[entry] == found[maybe]
        return first[maybe[sure]], entry[sure]

    def where(self, size: int, entries: np.ndarray) -> tuple[list[int], list[int]]:
        """File and row of runs, by their places in the index."""
        _, files, rows, _ = self._runs[size]
        return files[entries].tolist(), rows[entries].tolist()


def _test_texts(file: str, fields: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """(row, text) of a test set. DataError where it cannot be read or holds none."""
    path = Path(file).expanduser()
    none = True
    try:
        with open_bytes(path) as handle:
            if ".json" not in path.name:
                yield 0, handle.read().decode("utf-8", "replace")
                return
            for row, line in enumerate(handle):
                values = json.loads(line) if line.strip() else {}
                for field in fields:
                    if isinstance(values, dict) and isinstance(values.get(field), str):
                        none = False
                        yield row, values[field]
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"corpus.clean: step decontaminate, files = {file!r}: cannot be read ({error})") from None
    if none:
        raise DataError(
            f"corpus.clean: step decontaminate, files = {file!r}: no line has text in fields = {list(fields)}; name its keys"
        )
