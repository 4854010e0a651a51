"""Deduplication of documents, exact and near, within sources or across them.

Of a cluster of copies one stays: the first in (place of its source in `priority`, place in the corpus). That rule, and
signatures that are a function of the text alone, make the result the same at any number of workers and parts.

Signatures of a document take 24 bytes (exact), 8 + 8 x bands (near; 120 by default) or 4 + 4 x bands x rows (near, where
signatures are compared; 452); they may be mapped from files. A decision takes about 80 bytes of memory a document besides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.clean.base import Decision, GlobalStep, Seams, Signatures
from data.clean.clusters import Clusters, join_equal, join_similar
from data.clean.minhash import MinHash, bands, threshold
from data.clean.words import Texts, Words
from data.config import DataError
from data.document import Document
from data.order import key, mix

SCOPES = ("all", "source")
BY = ("words", "text")


@dataclass(frozen=True)
class ExactConfig:
    """Keeps one of equal documents, and writes how many there were as column exact_copies."""

    name: ClassVar[str] = "exact"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("exact_copies",)

    by: str = "words"
    """What is compared: `words`, whatever their case and what stands between them; `text`, every character."""

    scope: str = "all"
    """`all`: across sources too; `source`: only within each source."""

    priority: tuple[str, ...] = ()
    """Sources, as written in corpus.sources, whose documents are kept rather than others', best first; then comes the rest."""

    def __post_init__(self) -> None:
        if self.by not in BY:
            raise DataError(f"by = {self.by!r}: it must be one of {', '.join(BY)}")
        _check(self.scope, self.priority)

    def make(self, seams: Seams) -> GlobalStep:
        return _Exact(self)


@dataclass(frozen=True)
class MinhashConfig:
    """Keeps one of nearly equal documents (MinHash-LSH), and writes how many there were as column near_copies."""

    name: ClassVar[str] = "minhash"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("near_copies",)

    ngram: int = 5
    """Words of a shingle. FineWeb (Penedo et al. 2024, arXiv 2406.17557) takes 5."""

    bands: int = 14
    """Documents that agree in one band are candidates. 14 bands of 8 rows, FineWeb's, find pairs of a Jaccard similarity
    of 0.68 half of the time, of 0.8 with probability 0.92 and of 0.6 with 0.21."""

    rows: int = 8
    """Entries of a band."""

    threshold: float = 0.0
    """Candidates are copies where this share of all entries agrees, an estimate of the Jaccard similarity; 0 = all
    candidates are, as in FineWeb. Above 0 copies are fewer and surer, at four times the memory."""

    scope: str = "all"
    """`all`: across sources too; `source`: only within each source."""

    priority: tuple[str, ...] = ()
    """Sources, as written in corpus.sources, whose documents are kept rather than others', best first; then comes the rest."""

    seed: int = 0
    """Seed of the permutations."""

    def __post_init__(self) -> None:
        for option in ("ngram", "bands", "rows"):
            if getattr(self, option) < 1:
                raise DataError(f"{option} = {getattr(self, option)}: it must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise DataError(f"threshold = {self.threshold}: it must be between 0 and 1")
        _check(self.scope, self.priority)

    def make(self, seams: Seams) -> GlobalStep:
        return _Minhash(self)


def _check(scope: str, priority: tuple[str, ...]) -> None:
    if scope not in SCOPES:
        raise DataError(f"scope = {scope!r}: it must be one of {', '.join(SCOPES)}")
    if scope == "source" and priority:
        raise DataError(
            f"priority = {list(priority)} has no effect with scope = source: copies have the same source; remove it, or "
            "set scope to all"
        )


class _Ranks:
    """The first column of a signature: the place of a source in `priority`, or at scope `source` a hash of its name."""

    def __init__(self, scope: str, priority: tuple[str, ...]) -> None:
        self.apart = scope == "source"
        self.ranks = {source: rank for rank, source in enumerate(priority)}

    def of(self, documents: Sequence[Document], dtype: type) -> np.ndarray:
        """[n, 1], below 2^32."""
        if self.apart:
            ranks = [key("source", document.source) >> 32 for document in documents]
        else:
            ranks = [self.ranks.get(document.source, len(self.ranks)) for document in documents]
        return np.array(ranks, dtype=dtype).reshape(-1, 1)

    def order(self, ranks: np.ndarray) -> np.ndarray:
        """Documents in the order in which they are preferred, int64 [n]."""
        return np.arange(len(ranks)) if self.apart else np.argsort(ranks, kind="stable")

    def keyed(self, keys: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Keys uint64 [n] that are equal only within the scope."""
        return mix(keys + ranks.astype(np.uint64), key("scope")) if self.apart else keys


def _decision(clusters: Clusters, order: np.ndarray, name: str, note: str = "") -> Decision:
    """clusters: of documents in that order."""
    size = np.bincount(clusters.first, minlength=len(order))[clusters.first]
    keep, copies = np.empty(len(order), dtype=bool), np.empty(len(order), dtype=np.int64)
    keep[order] = clusters.first == np.arange(len(order))
    copies[order] = size
    return Decision(keep, {name: copies}, note)


class _Exact:
    reason = "copy"

    def __init__(self, config: ExactConfig) -> None:
        self.config, self.ranks = config, _Ranks(config.scope, config.priority)

    def signature(self, documents: Sequence[Document]) -> np.ndarray:
        """uint64 [n, 3]: rank, 128 bits of a hash."""
        data = [document.text.encode("utf-8", "surrogatepass") for document in documents]
        if self.config.by == "words":
            words = Words(Texts([document.text for document in documents]))
            ends = np.cumsum(words.per_text)
            for place, (end, count) in enumerate(zip(ends.tolist(), words.per_text.tolist(), strict=True)):
                if count:  # a text without a word is compared as it is
                    data[place] = b"words" + words.hashes[end - count : end].tobytes()
        digests = b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in data)
        return np.hstack([self.ranks.of(documents, np.uint64), np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)])

    def decide(self, signatures: Signatures) -> Decision:
        """Documents of equal hashes are one cluster."""
        order = self.ranks.order(signatures.column(0))
        ranks, high, low = (signatures.column(place)[order] for place in range(3))
        clusters = Clusters(len(order))
        by_hash = np.lexsort((low, high))
        new = (np.diff(high[by_hash], prepend=0) != 0) | (np.diff(low[by_hash], prepend=0) != 0)
        number = np.empty(len(order), dtype=np.uint64)  # all 128 bits count: 64 would meet by chance in large corpora
        number[by_hash] = np.cumsum(new)
        join_equal(clusters, self.ranks.keyed(number, ranks))
        return _decision(clusters, order, "exact_copies")


class _Minhash:
    reason = "near copy"

    def __init__(self, config: MinhashConfig) -> None:
        self.config, self.ranks = config, _Ranks(config.scope, config.priority)
        self.minhash = MinHash(config.ngram, config.bands * config.rows, config.seed)
        self.note = (
            f"pairs with a Jaccard similarity of {threshold(config.bands, config.rows):.2f} are found half of the time"
        )

    def signature(self, documents: Sequence[Document]) -> np.ndarray:
        """uint64 [n, 1 + bands], or uint32 [n, 1 + bands x rows] where signatures are to be compared."""
        found = self.minhash([document.text for document in documents])
        if self.config.threshold:
            return np.hstack([self.ranks.of(documents, np.uint32), found])
        return np.hstack([self.ranks.of(documents, np.uint64), bands(found, self.config.bands)])

    def decide(self, signatures: Signatures) -> Decision:
        """Clusters grow band by band, so only one band's keys are sorted at a time."""
        ranks = signatures.column(0)
        order = self.ranks.order(ranks)
        clusters, ranks, rows = Clusters(len(order)), ranks[order], self.config.rows

        def similar(one: np.ndarray, other: np.ndarray) -> np.ndarray:
            agreed = signatures.rows(order[one])[:, 1:] == signatures.rows(order[other])[:, 1:]
            return agreed.mean(axis=1) >= self.config.threshold

        for band in range(self.config.bands):
            if self.config.threshold:
                entries = signatures.column(1 + band * rows, 1 + (band + 1) * rows)
                join_similar(clusters, self.ranks.keyed(bands(entries, 1)[order, 0], ranks), similar)
            else:
                join_equal(clusters, self.ranks.keyed(signatures.column(1 + band)[order], ranks))
        return _decision(clusters, order, "near_copies", self.note)
