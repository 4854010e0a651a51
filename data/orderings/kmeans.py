"""Spherical k-means (Dhillon and Modha 2001) on int8 vectors, exact: centres are sums of integers, rounded to int8 again."""

from __future__ import annotations

import numpy as np

from data.order import key, permutation
from data.orderings.embed import Vectors, quantise
from data.progress import Progress

PER_CENTRE = 256
"""Documents a centre that centres are fitted to, as in faiss; of a larger corpus a keyed sample is taken."""

_BLOCK = 1 << 12


def fit(vectors: Vectors, clusters: int, rounds: int, seed: int, progress: Progress) -> Vectors:
    """Centres, at most `clusters` of them. Begins with a keyed choice of documents, ends when nothing moves.

    A cluster that loses all its documents is begun anew at the one that is served worst.
    """
    sample = np.sort(permutation(len(vectors), seed)[: PER_CENTRE * clusters])
    start = permutation(len(sample), key("centres", seed))[:clusters]
    centres, before = Vectors(vectors.values[sample[start]]), np.full(len(sample), -1)
    for round_ in range(rounds):
        progress(round_, rounds, f"k-means, {clusters} clusters")
        nearest, cosine = assign(vectors, centres, sample)
        if np.array_equal(nearest, before):
            break
        before = nearest
        sums = np.zeros((clusters, vectors.values.shape[1]), np.int64)
        for cluster in range(clusters):
            sums[cluster] = vectors.values[sample[nearest == cluster]].sum(0, dtype=np.int64)
        empty = np.flatnonzero(np.bincount(nearest, minlength=clusters) == 0)
        sums[empty] = vectors.values[sample[np.argsort(cosine, kind="stable")[: len(empty)]]]
        centres = Vectors(quantise(sums.astype(np.float64)))
    progress(rounds, rounds, f"k-means, {clusters} clusters")
    return centres


def assign(vectors: Vectors, centres: Vectors, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the nearest centre of each row, int64; its cosine, float32). Of equal ones the first."""
    nearest, cosine = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    across = centres.values.astype(np.float32).T
    for start in range(0, len(rows), _BLOCK):
        some = rows[start : start + _BLOCK]
        found = vectors.values[some].astype(np.float32) @ across
        found /= centres.lengths
        place = found.argmax(1)
        nearest[start : start + len(some)] = place
        cosine[start : start + len(some)] = found[np.arange(len(some)), place] / vectors.lengths[some]
    return nearest, cosine
