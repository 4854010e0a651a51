"""The k nearest neighbours of every document: exact for corpora up to a size, through an inverted file above it.

The inverted file (Jégou et al. 2011, IVF) puts every document in the list of its nearest centre and compares it with those
of the `probes` nearest lists alone: a whole list is compared at once, so that it stays one matrix product.
"""

from __future__ import annotations

import math

import numpy as np

from data.order import key
from data.orderings.embed import Vectors
from data.orderings.kmeans import assign, fit
from data.progress import Progress

_ROWS, _OTHERS = 512, 1 << 13
_LIST_ROUNDS = 8


def neighbours(
    vectors: Vectors, count: int, exact_up_to: int, probes: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers int32 [n, count], cosines float32 [n, count]) of each document's nearest others, nearest first.

    A place that has nobody (fewer documents, or nothing in common) is -1 with cosine 0.
    """
    everyone = np.arange(len(vectors))
    numbers = np.full((len(vectors), count), -1, np.int32)
    cosines = np.zeros((len(vectors), count), np.float32)
    if len(vectors) <= exact_up_to:
        for start in range(0, len(vectors), _ROWS):
            rows = everyone[start : start + _ROWS]
            numbers[rows], cosines[rows] = _search(vectors, rows, everyone, count)
            progress(start + len(rows), len(vectors), "nearest neighbours, exact")
        return numbers, cosines
    centres = fit(vectors, math.isqrt(len(vectors)), _LIST_ROUNDS, key("lists"), progress)
    where = assign(vectors, centres, everyone)[0]
    members = np.split(np.argsort(where, kind="stable"), np.cumsum(np.bincount(where, minlength=len(centres)))[:-1])
    lists = np.arange(len(centres))
    done = 0
    for start in range(0, len(centres), _ROWS):
        near = _search(centres, lists[start : start + _ROWS], lists, probes, self_too=True)[0]
        for own, probed in zip(lists[start : start + _ROWS], near, strict=True):
            others = np.sort(np.concatenate([members[place] for place in probed if place >= 0] or [everyone[:0]]))
            for first in range(0, len(members[own]), _ROWS):
                rows = members[own][first : first + _ROWS]
                numbers[rows], cosines[rows] = _search(vectors, rows, others, count)
            done += len(members[own])
            progress(done, len(vectors), "nearest neighbours, inverted file")
    return numbers, cosines


def _search(
    vectors: Vectors, rows: np.ndarray, others: np.ndarray, count: int, self_too: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of `others` (ascending) to each of the rows. Of equal ones the smaller number comes first.

    Others come in blocks; what does not reach a row's present last place is left out by one comparison.
    """
    best = np.zeros(len(rows), np.float32)  # an entry must be above it: nothing in common is no neighbour
    kept: list[np.ndarray] = [np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)]
    for start in range(0, len(others), _OTHERS):
        some = others[start : start + _OTHERS]
        found = vectors.cosines(rows, some)
        if not self_too:
            found[rows[:, None] == some] = 0.0
        if start == 0 and len(some) > count:
            last = np.partition(found, len(some) - count, axis=1)[:, len(some) - count]
            row, place = np.nonzero((found >= last[:, None]) & (found > 0))
        else:
            row, place = np.nonzero(found > best[:, None])
        more = (row, some[place], found[row, place])
        kept = _best([np.concatenate(pair) for pair in zip(kept, more, strict=True)], count)
        held = np.bincount(kept[0], minlength=len(rows))
        full = held >= count
        best[full] = kept[2][np.cumsum(held)[full] - 1]
    numbers, cosines = np.full((len(rows), count), -1, np.int32), np.zeros((len(rows), count), np.float32)
    rank = _rank(kept[0])
    numbers[kept[0], rank], cosines[kept[0], rank] = kept[1], kept[2]
    return numbers, cosines


def _best(entries: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The first `count` entries (row, number, cosine) of each row, by cosine and then by number."""
    order = np.lexsort((entries[1], -entries[2], entries[0]))
    row, number, cosine = (entry[order] for entry in entries)
    first = _rank(row) < count
    return [row[first], number[first], cosine[first]]


def _rank(rows: np.ndarray) -> np.ndarray:
    """How many entries of its row stand before each, for sorted rows, int64 [n]."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    return np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
