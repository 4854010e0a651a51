"""Orderings that published methods need: an index beside unchanged shards, made once and read by streams.

    simple     shuffle, length, difficulty
    chain      neighbours: in-context pretraining
    clusters   k-means
    embed, nearest, kmeans: what chain and clusters are made of
    store      the files

`make` makes one and stores it; `load(corpus, name).numbers(split)` is what a stream reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.config import DataError
from data.documents import Documents
from data.orderings.base import Method, Ordered
from data.orderings.chain import Neighbours
from data.orderings.clusters import Clusters
from data.orderings.simple import Difficulty, Length, Shuffle
from data.orderings.store import Ordering, existing, load, names, options_of, save
from data.progress import Progress, silent

__all__ = ["METHODS", "Ordered", "Ordering", "load", "make", "names"]

METHODS: dict[str, Callable[..., Method]] = {
    "shuffle": Shuffle,
    "length": Length,
    "neighbours": Neighbours,
    "clusters": Clusters,
    "difficulty": Difficulty,
}
"""By name: a frozen dataclass of options, which is called on documents."""


def make(
    corpus: Path | str,
    name: str,
    by: str,
    method: Method,
    splits: Sequence[str] = ("train",),
    progress: Progress = silent,
    *,
    call: Method | None = None,
    identity: Mapping[str, Any] | None = None,
) -> tuple[Ordering, bool]:
    """(the ordering, whether it was made now): one that is there already, with these options, is left as it is.

    call: what orders in the method's stead where that needs more than `data` has, such as a model; identity: what else
    then decides the ordering, and is stored with its options. DataError when the name is taken by another ordering, or the
    options do not fit the corpus.
    """
    corpus = Path(corpus)
    if len(set(splits)) != len(splits) or not splits:
        raise DataError(f"--splits={','.join(splits)}: name each split once, for example train,validation")
    opened = {split: Documents(corpus, split) for split in splits}
    options = {**options_of(method), **(identity or {})}
    found = existing(corpus, name, by, options, splits)
    if found is not None:
        return found, False
    made = {split: (documents, (call or method)(documents, progress)) for split, documents in opened.items()}
    return save(corpus, name, by, options, made), True
