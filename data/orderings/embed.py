"""Documents as vectors whose dot products tell how much their texts have in common, without a model.

A document is its hashed n-grams of tokens, weighted by TF-IDF (1 + log of the count, times the log of how rare the n-gram
is) and projected to a few hundred dimensions by random signs that a key gives, eight a feature (a sparse
Johnson-Lindenstrauss projection: Kane and Nelson 2014). In-context pretraining and MiniPile embed with a trained encoder
(Contriever, E5); this needs none, knows words and phrases but no synonyms, and runs at about a million tokens a second.

Exact everywhere: weights are integers and so are their sums, and a vector is stored as int8 with a length below 2^12. Dot
products are then integers below 2^24, which float32 holds exactly in whatever order a BLAS adds them. So neighbours
and clusters are the same to the last bit on any machine, at any number of threads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.documents import Chunk, Documents
from data.order import key, mix
from data.progress import Progress

BUCKETS = 1 << 18
"""Hashed features; n-grams that share one are taken for one."""

_SPREAD = 8
_STEP = 32.0  # int8 units of a typical component: one in thousands is clipped at 127
_WEIGHT = 256.0  # integer units of a TF-IDF weight of 1


@dataclass(frozen=True)
class Embedder:
    """How documents become vectors. n-grams of `ngram - 1` and `ngram` tokens within the first `reach` tokens."""

    dimensions: int
    ngram: int
    reach: int
    seed: int

    def embed(self, documents: Documents, out: Path, progress: Progress) -> Vectors:
        """Two passes over the tokens: how rare features are, then the vectors, into a file mapped to memory."""
        idf = self._rarity(documents, progress)
        shape = (len(documents), self.dimensions)
        found = np.lib.format.open_memmap(out, "w+", np.int8, shape)
        places, signs = self._projection()
        for chunk in documents.chunks():
            number, feature, count = self._features(chunk)
            weight = np.rint((1.0 + np.log(count)) * idf[feature] * _WEIGHT)
            rows = np.zeros(len(chunk) * self.dimensions)
            for spread in range(_SPREAD):
                place = number * self.dimensions + places[spread][feature]
                rows += np.bincount(place, weight * signs[spread][feature], len(rows))
            found[chunk.first : chunk.first + len(chunk)] = quantise(rows.reshape(len(chunk), self.dimensions))
            progress(len(documents) + chunk.first + len(chunk), 2 * len(documents), "embedding")
        return Vectors(found)

    def _rarity(self, documents: Documents, progress: Progress) -> np.ndarray:
        """log(documents / documents that have the feature), float64 [BUCKETS]; 0 for what is in all of them."""
        holders = np.zeros(BUCKETS, np.int64)
        for chunk in documents.chunks():
            holders += np.bincount(self._features(chunk)[1], minlength=BUCKETS)
            progress(chunk.first + len(chunk), 2 * len(documents), "counting n-grams")
        return np.log(max(len(documents), 2) / np.maximum(holders, 1))

    def _features(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(document within the chunk, feature, count) of every feature that a document has, each int64 [n]."""
        lengths = np.minimum(np.diff(chunk.ends, prepend=0) - 1, self.reach)  # without the end-of-document token
        starts = np.concatenate([np.zeros(1, np.int64), chunk.ends[:-1]])
        number = np.repeat(np.arange(len(chunk)), lengths)
        within = np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        tokens = chunk.tokens[np.repeat(starts, lengths) + within].astype(np.uint64)
        names = []
        for size in {max(1, self.ngram - 1), self.ngram}:
            if len(tokens) < size:
                continue
            hashed = np.full(len(tokens) - size + 1, key("ngram", size, self.seed), np.uint64)
            for offset in range(size):
                hashed = mix(hashed ^ tokens[offset : offset + len(hashed)], offset)
            whole = within[size - 1 :] >= size - 1  # its first token is of the same document
            owner = number[size - 1 :][whole].astype(np.uint64)
            names.append(owner * np.uint64(BUCKETS) + hashed[whole] % np.uint64(BUCKETS))
        found, count = np.unique(np.concatenate([np.zeros(0, np.uint64), *names]), return_counts=True)
        return (found // BUCKETS).astype(np.int64), (found % BUCKETS).astype(np.int64), count

    def _projection(self) -> tuple[np.ndarray, np.ndarray]:
        """The dimensions that a feature goes to, int64 [_SPREAD, BUCKETS], and its signs there, ±1."""
        features = np.arange(BUCKETS, dtype=np.uint64)
        drawn = np.stack([mix(features, key("projection", self.seed, spread)) for spread in range(_SPREAD)])
        signs = (drawn >> np.uint64(63)).astype(np.int64) * 2 - 1
        return ((drawn & np.uint64(0xFFFFFFFF)) % np.uint64(self.dimensions)).astype(np.int64), signs


def quantise(rows: np.ndarray) -> np.ndarray:
    """Directions of rows [n, d] as int8 [n, d], all of about one length; a row of zeros stays one."""
    length = np.sqrt((rows * rows).sum(1, keepdims=True))
    units = rows / np.where(length > 0, length, 1.0) * (_STEP * math.sqrt(rows.shape[1]))
    return np.clip(np.rint(units), -127, 127).astype(np.int8)


class Vectors:
    """int8 vectors [n, d] and their lengths, float32 [n]; of zeros the length is 1, so that they are like nothing."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.lengths = np.ones(len(values), np.float32)
        for start in range(0, len(values), 1 << 14):
            rows = values[start : start + (1 << 14)].astype(np.float32)
            self.lengths[start : start + len(rows)] = np.sqrt(np.maximum((rows * rows).sum(1), 1.0))

    def __len__(self) -> int:
        return len(self.values)

    def cosines(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """float32 [r, o] for numbers of rows [r] and others [o]."""
        dots = self.values[rows].astype(np.float32) @ self.values[others].astype(np.float32).T
        dots /= self.lengths[rows][:, None]
        dots /= self.lengths[others]
        return dots

    def pairs(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Cosine of rows[i] and others[i], float32 [n]."""
        out = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), 1 << 14):
            one, two = rows[start : start + (1 << 14)], others[start : start + (1 << 14)]
            dots = (self.values[one].astype(np.float32) * self.values[two].astype(np.float32)).sum(1)
            out[start : start + len(one)] = dots / self.lengths[one] / self.lengths[two]
        return out


def ngram_for(vocab_size: int) -> int:
    """n-grams that say what a text is about: pairs of words' pieces, or five of what is little more than letters."""
    return 2 if vocab_size > 4096 else 3 if vocab_size > 512 else 5
