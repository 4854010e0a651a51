"""Clusters of equal or similar documents: groups by keys, joined by a union-find over arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_CHUNK = 1 << 14  # pairs whose signatures are compared at once


class Clusters:
    """A partition of n documents. Joined clusters take the smallest number among them: their first document's."""

    def __init__(self, size: int) -> None:
        self.parent = np.arange(size, dtype=np.int64)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Documents one[i] and other[i] belong together."""
        while len(one):
            a, b = self.parent[one], self.parent[other]
            differ = a != b
            one, other, a, b = one[differ], other[differ], a[differ], b[differ]
            if not len(one):
                return
            np.minimum.at(self.parent, np.maximum(a, b), np.minimum(a, b))
            while not np.array_equal(above := self.parent[self.parent], self.parent):
                self.parent = above

    @property
    def first(self) -> np.ndarray:
        """The first document of each document's cluster, int64 [n]."""
        return self.parent


def join_equal(clusters: Clusters, keys: np.ndarray) -> None:
    """Joins all documents of equal keys, uint64 [n]."""
    _, documents, leaders = _groups(keys, np.arange(len(keys)))
    clusters.join(leaders, documents)


def join_similar(clusters: Clusters, keys: np.ndarray, similar: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    """Joins those of equal keys that are similar to a leader; similar: documents [m], documents [m] -> bool [m].

    A group's first document leads; those that are not like it form a group again, led by the first of them.
    """
    active = np.arange(len(keys))
    while len(active):
        active, documents, leaders = _groups(keys, active)
        alike = clusters.first[documents] == clusters.first[leaders]
        open_ = np.flatnonzero(~alike)
        for start in range(0, len(open_), _CHUNK):
            part = open_[start : start + _CHUNK]
            alike[part] = similar(documents[part], leaders[part])
        clusters.join(leaders[alike], documents[alike])
        active = documents[~alike]


def _groups(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups of equal keys among some documents: (all of them, all but the firsts, each one's first)."""
    order = among[np.argsort(keys[among])]  # not stable, which would take three times as long
    ordered = keys[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    begins = np.flatnonzero(new)
    if not len(begins):
        return order, order, order
    leaders = np.repeat(np.minimum.reduceat(order, begins), np.diff(np.append(begins, len(order))))
    others = order != leaders
    return order, order[others], leaders[others]
