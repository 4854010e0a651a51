"""Clusters of related documents: k-means on their vectors, in the manner of MiniPile (Kaddour 2023, arXiv 2304.08442).

MiniPile embeds the Pile with E5, makes 220 clusters of it, looks at each and leaves out those that are harmful or of no
use. Here the clusters, each with the documents nearest to its centre, are in the ordering's `measured`; the same
command with `--drop` leaves some out, since clusters follow from the options alone.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.config import DataError
from data.documents import Documents
from data.order import key, mix
from data.orderings.base import Ordered
from data.orderings.chain import check_vectors
from data.orderings.embed import Embedder, ngram_for
from data.orderings.kmeans import assign, fit
from data.progress import Progress

_NEAREST = 3


@dataclass(frozen=True)
class Clusters:
    """Documents cluster by cluster, or with clusters evenly mixed; leaves out what you name (MiniPile, arXiv 2304.08442)."""

    clusters: int = 220
    """Clusters to make, MiniPile's number; at most one for two documents."""

    layout: str = "blocks"
    """`blocks`: one cluster after another; `interleaved`: every stretch holds each cluster in proportion to its size."""

    drop: tuple[int, ...] = ()
    """Numbers of clusters that are left out, as an ordering without this option lists them."""

    rounds: int = 25
    """Rounds of k-means, unless nothing moves before."""

    dimensions: int = 512
    """Length of a document's vector."""

    ngram: int = 0
    """Vectors count n-grams of this many tokens and of one less; 0 = by vocabulary: 2 above 4,096 ids, 3 above 512, else
    5."""

    reach: int = 4096
    """Tokens at a document's beginning that its vector is made of."""

    seed: int = 0
    """Decides the projection, the first centres and the order within a cluster."""

    def __post_init__(self) -> None:
        check_vectors(self.dimensions, self.ngram, self.reach)
        if self.clusters < 2:
            raise DataError(f"--clusters={self.clusters}: must be at least 2")
        if self.rounds < 1:
            raise DataError(f"--rounds={self.rounds}: must be at least 1")
        if self.layout not in ("blocks", "interleaved"):
            raise DataError(f"--layout={self.layout}: must be blocks or interleaved")
        wrong = [number for number in self.drop if not 0 <= number < self.clusters]
        if wrong:
            raise DataError(f"--drop={wrong[0]}: clusters are numbered from 0 to {self.clusters - 1}")
        if len(set(self.drop)) == self.clusters:
            raise DataError("--drop: names every cluster; nothing would be left to read")

    def __call__(self, documents: Documents, progress: Progress) -> Ordered:
        if 2 * self.clusters > len(documents):
            raise DataError(
                f"--clusters={self.clusters}: {documents.split} has {len(documents):,} documents, so at most "
                f"{len(documents) // 2:,}; lower it"
            )
        with tempfile.TemporaryDirectory(dir=documents.path, prefix=".vectors-") as scratch:
            ngram = self.ngram or ngram_for(documents.manifest.vocab_size)
            embedder = Embedder(self.dimensions, ngram, self.reach, self.seed)
            vectors = embedder.embed(documents, Path(scratch, "vectors.npy"), progress)
            centres = fit(vectors, self.clusters, self.rounds, key("clusters", self.seed), progress)
            cluster, cosine = assign(vectors, centres, np.arange(len(documents)))
        numbers = _laid_out(cluster, self.layout, key("order", "clusters", self.seed))
        numbers = numbers[~np.isin(cluster[numbers], self.drop)]
        if not len(numbers):
            raise DataError(f"--drop={','.join(map(str, self.drop))}: leaves no document of {documents.split}")
        columns = {"cluster": pa.array(cluster, pa.int64()), "to_centre": pa.array(cosine, pa.float32())}
        return Ordered(numbers, columns, {"clusters": _measured(documents, cluster, cosine, self.clusters)})


def _laid_out(cluster: np.ndarray, layout: str, seed: int) -> np.ndarray:
    """Every document once: clusters one after another, or each spread evenly over the whole; keyed within a cluster."""
    keyed = np.lexsort((mix(np.arange(len(cluster), dtype=np.uint64), seed), cluster))
    if layout == "blocks":
        return keyed
    sizes = np.bincount(cluster)
    rank = np.arange(len(cluster)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return keyed[np.lexsort((cluster[keyed], (rank + 0.5) / sizes[cluster[keyed]]))]


def _measured(documents: Documents, cluster: np.ndarray, cosine: np.ndarray, clusters: int) -> list[dict[str, Any]]:
    """Of each cluster: documents, tokens, mean cosine to its centre, and the documents nearest to it."""
    tokens = np.bincount(cluster, documents.lengths(), clusters)
    order = np.lexsort((np.arange(len(cluster)), -cosine, cluster))
    members = np.split(order, np.cumsum(np.bincount(cluster, minlength=clusters))[:-1])
    return [
        {
            "documents": len(own),
            "tokens": int(tokens[number]),
            "to_centre": round(float(cosine[own].mean()), 4) if len(own) else None,
            "nearest": own[:_NEAREST].tolist(),
        }
        for number, own in enumerate(members)
    ]
