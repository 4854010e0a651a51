"""In-context pretraining (Shi et al. 2023, arXiv 2310.10638): related documents one after another.

Documents are a graph whose edges join nearest neighbours, weighted by similarity, and the order is a path through all of
them that is heavy: the maximum travelling salesman, approximated as in the paper. The path begins at the document of least
degree, goes on to the most similar neighbour that it has not visited, and where there is none, begins anew at the unvisited
document of least degree: those of few neighbours first, since they would be the first to have none left.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.config import DataError
from data.documents import Documents
from data.order import key, permutation
from data.orderings.base import Ordered
from data.orderings.embed import Embedder, Vectors, ngram_for
from data.orderings.nearest import neighbours
from data.progress import Progress


@dataclass(frozen=True)
class Neighbours:
    """Chains of nearest neighbours, every document once (in-context pretraining, arXiv 2310.10638).

    Needs about 20 bytes of memory a document and neighbour, and a temporary file of `dimensions` bytes a document.
    """

    neighbours: int = 20
    """Nearest neighbours of a document that the path may go on to (in the graph: and the documents it is one of)."""

    dimensions: int = 512
    """Length of a document's vector; more tell texts apart better, and cost in proportion."""

    ngram: int = 0
    """Vectors count n-grams of this many tokens and of one less; 0 = by vocabulary: 2 above 4,096 ids, 3 above 512, else
    5."""

    reach: int = 4096
    """Tokens at a document's beginning that its vector is made of."""

    exact_up_to: int = 65536
    """Up to so many documents neighbours are exact; of more they are sought in an inverted file."""

    probes: int = 16
    """Lists of the inverted file that a document's neighbours are sought in."""

    seed: int = 0
    """Decides the projection of the vectors."""

    def __post_init__(self) -> None:
        check_vectors(self.dimensions, self.ngram, self.reach)
        for name, limit in (("neighbours", 1), ("exact_up_to", 0), ("probes", 1)):
            if getattr(self, name) < limit:
                raise DataError(f"--{name.replace('_', '-')}={getattr(self, name)}: must be at least {limit}")

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        with tempfile.TemporaryDirectory(dir=documents.path, prefix=".vectors-") as scratch:
            embedder = Embedder(
                self.dimensions, self.ngram or ngram_for(documents.manifest.vocab_size), self.reach, self.seed
            )
            vectors = embedder.embed(documents, Path(scratch, "vectors.npy"), progress)
            numbers, cosines = neighbours(vectors, self.neighbours, self.exact_up_to, self.probes, progress)
            path, jumps = heavy_path(numbers, cosines, progress)
            return Ordered(path, measured={**_measured(vectors, path), "chains": jumps})


def check_vectors(dimensions: int, ngram: int, reach: int) -> None:
    """Refuses vectors that cannot be."""
    if not 16 <= dimensions <= 4096:
        raise DataError(f"--dimensions={dimensions}: must be between 16 and 4096, for example 512")
    if not 0 <= ngram <= 16:
        raise DataError(f"--ngram={ngram}: must be between 1 and 16, or 0 to choose by vocabulary")
    if reach < 16:
        raise DataError(f"--reach={reach}: must be at least 16 tokens")


def _measured(vectors: Vectors, path: np.ndarray) -> dict[str, float]:
    """Mean similarity of neighbours on the path, in storage order and in a random order."""
    if len(path) < 2:
        return {}
    orders = {
        "similarity": path,
        "similarity_stored": np.arange(len(path)),
        "similarity_random": permutation(len(path), key("random order")),
    }
    return {name: round(float(vectors.pairs(order[:-1], order[1:]).mean()), 6) for name, order in orders.items()}


def heavy_path(numbers: np.ndarray, cosines: np.ndarray, progress: Progress) -> tuple[np.ndarray, int]:
    """(every document once, int64 [n]; how often the path began anew) from neighbours int32 [n, k] and similarities."""
    starts, others = _graph(numbers, cosines)
    count = len(numbers)
    by_degree = np.argsort(np.diff(starts), kind="stable")
    visited = bytearray(count)
    path = np.empty(count, np.int64)
    length, jumps = 0, 0
    for first in by_degree.tolist():
        if visited[first]:
            continue
        jumps += 1
        here = first
        while here >= 0:
            visited[here] = 1
            path[length] = here
            length += 1
            if length % 65536 == 0:
                progress(length, count, "path")
            around = others[starts[here] : starts[here + 1]].tolist()
            here = next((other for other in around if not visited[other]), -1)
    return path, jumps


def _graph(numbers: np.ndarray, cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The undirected graph: (where each document's neighbours begin, int64 [n + 1]; neighbours, most similar first)."""
    count = len(numbers)
    there = numbers >= 0
    one = np.repeat(np.arange(count, dtype=np.int32), there.sum(1))
    two, weight = numbers[there], cosines[there]
    ends = np.concatenate([one, two]).astype(np.int64) * count + np.concatenate([two, one])
    edges, place = np.unique(ends, return_index=True)
    weight = np.concatenate([weight, weight])[place]
    one, two = edges // count, edges % count
    order = np.lexsort((two, -weight, one))
    degrees = np.bincount(one, minlength=count)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(degrees)]), two[order].astype(np.int32)
