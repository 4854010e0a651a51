"""Packing: how documents become samples of at most S tokens. Pure functions of the documents' lengths.

A packing is a list of pieces (document, offset in it, tokens), and where in that list each sample begins. Every token
of every document is in exactly one piece. Methods:

cut        documents one after another, cut every S tokens ("concatenate and cut")
best_fit   documents longer than S give whole samples of S; what is left of each goes where it fits best, longest first
           (best-fit decreasing; Ding et al., "Fewer Truncations Improve Language Modeling", arXiv 2404.10830)
document   one document a sample; longer ones give several
bucket     each document is cut into pieces whose lengths are powers of two, one piece a sample, all of one length
           (Pouransari et al., "Dataset Decomposition", arXiv 2405.13226)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

METHODS = ("cut", "best_fit", "document")


@dataclass(frozen=True)
class Packed:
    """Pieces and samples. document, offset, length: int64 [pieces]; first: int64 [samples + 1], first piece of each."""

    document: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    first: np.ndarray

    @property
    def samples(self) -> int:
        return len(self.first) - 1


def pack(method: str, lengths: np.ndarray, size: int) -> Packed:
    """Packs documents of these lengths (int64 [documents], each ≥ 1) into samples of `size` tokens."""
    return {"cut": cut, "best_fit": best_fit, "document": by_document}[method](lengths, size)


def cut(lengths: np.ndarray, size: int) -> Packed:
    """Documents one after another, cut every `size` tokens."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    stops = np.union1d(ends, np.arange(size, total, size, dtype=np.int64))
    starts = np.concatenate([np.zeros(min(1, len(stops)), np.int64), stops[:-1]])
    document = np.searchsorted(ends, starts, side="right")
    offset = starts - (ends - lengths)[document]
    samples = -(-total // size)
    first = np.searchsorted(starts // size, np.arange(samples + 1)).astype(np.int64)
    return Packed(document, offset, stops - starts, first)


def best_fit(lengths: np.ndarray, size: int) -> Packed:
    """Best-fit decreasing, in O(documents) word operations of `size` bits."""
    document, offset, length = _chunks(lengths, size)
    order = np.lexsort((document, -length))  # longest first, then as stored
    open_at: list[list[int]] = [[] for _ in range(size)]  # samples by the space that is left in them
    spaces = 0  # bit s is set where some sample has s tokens left
    sample_of = np.empty(len(order), np.int64)
    samples = 0
    for place, tokens in zip(order.tolist(), length[order].tolist(), strict=True):
        fitting = spaces >> tokens
        if fitting:
            space = tokens + (fitting & -fitting).bit_length() - 1
            sample = open_at[space].pop()
            if not open_at[space]:
                spaces ^= 1 << space
        else:
            sample, space, samples = samples, size, samples + 1
        sample_of[place] = sample
        if space > tokens:
            open_at[space - tokens].append(sample)
            spaces |= 1 << (space - tokens)
    order = np.lexsort((document, sample_of))  # within a sample as stored
    first = np.searchsorted(sample_of[order], np.arange(samples + 1)).astype(np.int64)
    return Packed(document[order], offset[order], length[order], first)


def by_document(lengths: np.ndarray, size: int) -> Packed:
    """Every document begins a sample; one that is longer goes on in the next."""
    document, offset, length = _chunks(lengths, size)
    return Packed(document, offset, length, np.arange(len(length) + 1, dtype=np.int64))


def buckets(lengths: np.ndarray, sizes: tuple[int, ...]) -> dict[int, Packed]:
    """For each size the pieces of that length: a document gives as many of the largest as fit, then of the next, …

    sizes: ascending, each twice the one before. What is left below the smallest is one shorter piece of that bucket.
    """
    rest, offset = lengths.astype(np.int64), np.zeros(len(lengths), np.int64)
    found: dict[int, Packed] = {}
    for size in reversed(sizes):
        counts = -(-rest // size) if size == sizes[0] else rest // size
        document = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = offset[document] + number * size
        length = np.minimum(size, lengths[document] - place)
        found[size] = Packed(document, place, length, np.arange(len(document) + 1, dtype=np.int64))
        used = np.minimum(counts * size, rest)
        rest, offset = rest - used, offset + used
    return found


def _chunks(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents cut every `size` of their own tokens: (document, offset, length) of each chunk, in order."""
    counts = -(-lengths // size)
    document = np.repeat(np.arange(len(lengths)), counts)
    offset = (np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    return document, offset, np.minimum(size, lengths[document] - offset)
