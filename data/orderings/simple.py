"""Orderings that a document's length or a column decides, and the keyed shuffle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.config import DataError
from data.documents import Documents
from data.order import key, mix, permutation
from data.orderings.base import Ordered
from data.progress import Progress
from data.tokenizers import load_corpus_tokenizer


@dataclass(frozen=True)
class Shuffle:
    """Documents in a keyed pseudo-random order; all of them, or as many from the beginning as a budget allows (the BabyLM
    tracks of 10M and 100M words, arXiv 2301.11796)."""

    seed: int = 0
    """Decides the order."""

    words: int = 0
    """Only documents that together have at most this many words, counted between spaces; 0 = no limit."""

    tokens: int = 0
    """Only documents that together have at most this many tokens; 0 = no limit."""

    def __post_init__(self) -> None:
        if self.words and self.tokens:
            raise DataError(f"--words={self.words} and --tokens={self.tokens}: one budget is enough; leave one out")
        if min(self.words, self.tokens) < 0:
            raise DataError(f"--words={self.words}, --tokens={self.tokens}: must be at least 0")

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        order = permutation(len(documents), key("order", "shuffle", self.seed))
        if self.tokens:
            sizes = np.cumsum(documents.lengths()[order])
            kept, unit, limit = int(np.searchsorted(sizes, self.tokens, side="right")), "tokens", self.tokens
            used = int(sizes[kept - 1]) if kept else 0
        elif self.words:
            (kept, used), unit, limit = _within_words(documents, order, self.words, progress), "words", self.words
        else:
            return Ordered(order)
        if not kept:
            raise DataError(f"--{unit}={limit}: the first document has more; raise it")
        return Ordered(order[:kept], measured={unit: used})


def _within_words(documents: Documents, order: np.ndarray, limit: int, progress: Progress) -> tuple[int, int]:
    """(documents, their words): as many from the beginning of the order as have at most `limit` words."""
    tokenizer, used = load_corpus_tokenizer(documents.path), 0
    for kept, number in enumerate(order.tolist()):
        words = len(tokenizer.decode(documents.document(number)[:-1]).split())
        if used + words > limit:
            return kept, used
        used += words
        progress(used, limit, "counting words")
    return len(order), used


@dataclass(frozen=True)
class Length:
    """Documents by length: bucket by bucket (as for curricula of length), shuffled within a bucket, or sorted exactly."""

    ratio: float = 2.0
    """Documents of ratio^i to ratio^(i+1) tokens are one bucket, within which a key decides the order; 1 = sorted by
    exact length, where a key decides among equals."""

    descending: bool = False
    """Longest first instead of shortest first."""

    seed: int = 0
    """Decides the order within a bucket."""

    def __post_init__(self) -> None:
        if not (self.ratio == 1 or 1.01 <= self.ratio <= 1024):
            raise DataError(f"--ratio={self.ratio}: must be 1 (sorted exactly) or between 1.01 and 1024, for example 2")

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        lengths = documents.lengths()
        buckets = lengths if self.ratio == 1 else _powers(lengths, self.ratio)
        numbers = by_value(buckets.astype(np.float64), self.descending, key("order", "length", self.seed))
        names, counts = np.unique(buckets, return_counts=True)
        if self.ratio == 1:
            return Ordered(numbers, measured={"shortest": int(lengths.min()), "longest": int(lengths.max())})
        tokens = np.bincount(np.searchsorted(names, buckets), lengths).astype(np.int64)
        found: list[dict[str, Any]] = [
            {"from_tokens": math.ceil(self.ratio**name - 1e-9), "documents": int(documents_), "tokens": int(tokens_)}
            for name, documents_, tokens_ in zip(names.tolist(), counts, tokens, strict=True)
        ]
        columns = {"bucket": pa.array(buckets, pa.int64())}
        return Ordered(numbers, columns, {"buckets": found[::-1] if self.descending else found})


def _powers(lengths: np.ndarray, ratio: float) -> np.ndarray:
    """The largest i with ratio^i at most the length, int64. Borders are compared and no logarithm is rounded."""
    borders = ratio ** np.arange(1, 2 + math.ceil(math.log(max(2, int(lengths.max())), ratio)))
    return np.searchsorted(np.ceil(borders - 1e-9), lengths, side="right").astype(np.int64)


def by_value(values: np.ndarray, descending: bool, seed: int) -> np.ndarray:
    """Places of values float64 [n] from small to large, or large to small; a key decides among equals."""
    return np.lexsort((mix(np.arange(len(values), dtype=np.uint64), seed), -values if descending else values))


@dataclass(frozen=True)
class Difficulty:
    """Documents from easy to hard by a number that each of them has: a curriculum (Bengio et al. 2009).

    The number is a column of the corpus, or what a model says of each document: `bits_per_byte` of a run's checkpoint.
    """

    column: str = ""
    """The column that says how hard a document is: a quality signal, `tokens`, or `ordering.column` of another ordering."""

    run: str = ""
    """Directory of a run: its newest checkpoint scores every document in bits per byte, and the scores are kept beside
    the ordering as the column `bits_per_byte`. Instead of a column."""

    descending: bool = False
    """From large values to small ones: hard to easy."""

    reach: int = 0
    """With a run: tokens at a document's beginning that it scores; 0 = all of them."""

    missing: str = "refuse"
    """What becomes of documents without the number: `refuse` the ordering, put them `last`, or `drop` them."""

    seed: int = 0
    """Decides the order among documents with equal numbers."""

    def __post_init__(self) -> None:
        if bool(self.column) == bool(self.run):
            raise DataError(
                f"--column={self.column} --run={self.run}: difficulty needs one of the two, a column of the corpus or a "
                "run whose checkpoint scores documents"
            )
        if self.reach < 0 or (self.reach and not self.run):
            raise DataError(f"--reach={self.reach}: must be at least 0, and has no effect without --run")
        if self.missing not in ("refuse", "last", "drop"):
            raise DataError(f"--missing={self.missing}: must be refuse, last or drop")

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        return self.order(documents.numbers(self.column))

    @property
    def _by(self) -> str:
        return f"--run={self.run}" if self.run else f"--column={self.column}"

    def order(self, values: np.ndarray, columns: dict[str, pa.Array] | None = None) -> Ordered:
        """The ordering by these values, float64 [documents], NaN where there is none."""
        known = np.isfinite(values)
        absent = int((~known).sum())
        if absent and self.missing == "refuse":
            raise DataError(
                f"{self._by}: {absent:,} of {len(values):,} documents have no finite value; set "
                "--missing=last or --missing=drop"
            )
        if not known.any():
            raise DataError(f"{self._by}: no document has a finite value; choose another")
        numbers = by_value(np.where(known, values, 0.0), self.descending, key("order", "difficulty", self.seed))
        kept = [numbers[known[numbers]]] + ([numbers[~known[numbers]]] if self.missing == "last" else [])
        quantiles = np.quantile(values[known], [0, 0.25, 0.5, 0.75, 1]).tolist()
        return Ordered(np.concatenate(kept), columns or {}, {"quartiles": quantiles, "without_value": absent})
