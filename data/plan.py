"""Plans: where each sample of a packing lies, worked out once and kept beside the shards, which stay as they are.

Concatenate-and-cut over a whole split needs none. Everything else (best-fit, one document a sample, buckets, filters,
orderings) does: a list of pieces (place on the corpus's line, tokens), and the first piece of each sample, in files
that are mapped. Reading a sample is then O(its pieces) at any index, and opening a plan reads a few bytes.

A plan is named by a hash of all that decides it. It lies in `<corpus>/plans/`, or under $TRIAXIS_CACHE (by default
~/.cache/triaxis) where the corpus cannot be written.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data import pack
from data.config import DataError
from data.corpus import Corpus
from data.pack import Packed
from data.progress import Progress

CELL_DOCUMENTS = 1 << 16
"""Documents of an ordering that are packed together; without an ordering a shard is packed by itself."""

_ABOUT = "plan.json"
_VERSION = 2


@dataclass(frozen=True)
class PlanSpec:
    """What decides a plan besides the corpus.

    method: of `data.pack`, or `bucket`. size: tokens of a sample. lengths: all bucket sizes, for `bucket`. where: filter
    on metadata. ordering: name of an index in `<corpus>/orders`.
    """

    method: str
    size: int
    lengths: tuple[int, ...] = ()
    where: str = ""
    ordering: str = ""


@dataclass(frozen=True)
class Plan:
    """starts: int64 [pieces], places on the corpus's line. sizes: int32 [pieces], tokens, negative where the piece does not
    begin its document. first: int64 [samples + 1]. cells: int64 [cells + 1], first sample of what was packed together.
    documents, tokens: how many there are in it."""

    starts: np.ndarray
    sizes: np.ndarray
    first: np.ndarray
    cells: np.ndarray
    documents: int
    tokens: int

    @property
    def samples(self) -> int:
        return int(self.cells[-1])


_ARRAYS = {"starts": np.int64, "sizes": np.int32, "first": np.int64, "cells": np.int64}


def open_plan(corpus: Corpus, spec: PlanSpec, progress: Progress | None = None) -> Plan:
    """The plan, made now if it is not there. DataError when nothing passes the filter, or the ordering does not fit."""
    order = read_ordering(corpus, spec.ordering) if spec.ordering else None
    name = _name(corpus, spec, order)
    for root in _roots(corpus):
        if (root / name / _ABOUT).exists():
            return _read(root / name)
    for root in _roots(corpus):
        try:
            root.mkdir(parents=True, exist_ok=True)
            lock = (root / f".{name}.lock").open("w")
        except OSError:
            continue  # a corpus that others own, or on a file system that is mounted to be read
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (root / name / _ABOUT).exists():
                _make(root, name, corpus, spec, order, progress or (lambda done, total, note: None))
        return _read(root / name)
    raise DataError(
        f"{corpus.path}: cannot be written, and neither can {_roots(corpus)[-1]}: a packing needs a place for its plan; set "
        "TRIAXIS_CACHE to a directory with space"
    )


def read_ordering(corpus: Corpus, name: str) -> np.ndarray:
    """Document numbers of the split in the order that `triaxis data order` wrote, int64 [documents]."""
    from data.orderings.store import load

    found = load(corpus.path, name)
    if corpus.split not in found.splits:
        raise DataError(
            f"data.ordering={name}: of the {', '.join(found.splits)} split of {corpus.path}, not of {corpus.split}; make one "
            f"with `triaxis data order {corpus.path} --splits {corpus.split}`"
        )
    return found.numbers(corpus.split)


def _name(corpus: Corpus, spec: PlanSpec, order: np.ndarray | None) -> str:
    parts = [_VERSION, corpus.manifest.fingerprint, corpus.split, asdict(spec)]
    if order is not None:
        parts.append(hashlib.sha256(np.ascontiguousarray(order).data).hexdigest())
    return f"{spec.method}-{spec.size}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def _roots(corpus: Corpus) -> list[Path]:
    cache = os.environ.get("TRIAXIS_CACHE", "") or Path("~/.cache/triaxis").expanduser()
    return [corpus.path / "plans", Path(cache) / "plans"]


def _read(place: Path) -> Plan:
    about = json.loads((place / _ABOUT).read_text())
    arrays = {
        name: np.memmap(place / f"{name}.bin", kind, "r").view(np.ndarray)
        if about["counts"][name]
        else np.empty(0, kind)
        for name, kind in _ARRAYS.items()
    }
    for name, array in arrays.items():
        if len(array) != about["counts"][name]:
            raise DataError(f"{place / name}.bin: {len(array)} entries of {about['counts'][name]}; delete {place}")
    return Plan(**arrays, documents=about["documents"], tokens=about["tokens"])


def _make(root: Path, name: str, corpus: Corpus, spec: PlanSpec, order: np.ndarray | None, progress: Progress) -> None:
    """Writes the plan's files to a directory beside its own, then gives it its name."""
    partial = root / f".{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        counts = dict.fromkeys(_ARRAYS, 0)
        documents = tokens = samples = 0
        files = {part: (partial / f"{part}.bin").open("wb") for part in _ARRAYS}
        try:
            for starts, lengths in _cells(corpus, spec, order, progress):
                packed = _pack(spec, lengths)
                fresh = packed.offset == 0
                written = {
                    "starts": starts[packed.document] + packed.offset,
                    "sizes": np.where(fresh, packed.length, -packed.length),
                    "first": packed.first[:-1] + counts["starts"],
                    "cells": np.array([samples]),
                }
                for part, values in written.items():
                    values.astype(_ARRAYS[part]).tofile(files[part])
                    counts[part] += len(values)
                documents += len(np.unique(packed.document))
                tokens, samples = tokens + int(packed.length.sum()), samples + packed.samples
            for part, last in (("first", counts["starts"]), ("cells", samples)):
                np.array([last], _ARRAYS[part]).tofile(files[part])
                counts[part] += 1
        finally:
            for file in files.values():
                file.close()
        if not samples:
            raise DataError(_nothing(corpus, spec))
        (partial / _ABOUT).write_text(
            json.dumps({"spec": asdict(spec), "documents": documents, "tokens": tokens, "counts": counts})
        )
        os.rename(partial, root / name)
    except OSError as error:
        raise DataError(f"{root}: cannot write a plan of {corpus.path} ({error.strerror}); free space there") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _nothing(corpus: Corpus, spec: PlanSpec) -> str:
    if spec.method == "bucket":
        return f"data.buckets.lengths={list(spec.lengths)}: no document of {corpus.path} has {spec.size} tokens; leave it out"
    return f"where={spec.where!r}: no document of {corpus.path} ({corpus.split}) passes; loosen the filter"


def _cells(
    corpus: Corpus, spec: PlanSpec, order: np.ndarray | None, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places on the line, tokens) of the documents that are packed together, int64 [documents] each."""
    if order is None:
        for number in range(corpus.shards):
            yield _documents(corpus, number, spec.where)
            progress(number + 1, corpus.shards, f"packing {corpus.path.name} ({spec.method} {spec.size})")
        return
    everything = [_documents(corpus, number, "") for number in range(corpus.shards)]
    starts, lengths = (np.concatenate([part[i] for part in everything]) for i in (0, 1))
    keep = np.concatenate([_passing(corpus, number, spec.where) for number in range(corpus.shards)])
    for begin in range(0, len(order), CELL_DOCUMENTS):
        chosen = np.asarray(order[begin : begin + CELL_DOCUMENTS])
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < corpus.documents:
            raise DataError(f"data.ordering={spec.ordering}: names documents that are not there; make it again")
        chosen = chosen[keep[chosen]]
        yield starts[chosen], lengths[chosen]
        progress(begin + len(chosen), len(order), f"packing {corpus.path.name} in the order {spec.ordering}")


def _documents(corpus: Corpus, number: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """(places on the line, tokens) of the documents of a shard that pass the filter."""
    lengths = corpus.lengths(number)
    starts = int(corpus.shard_starts[number]) + np.cumsum(lengths) - lengths
    keep = _passing(corpus, number, where)
    return starts[keep], lengths[keep]


def _passing(corpus: Corpus, number: int, where: str) -> np.ndarray:
    """bool [documents] of a shard."""
    if not where:
        return np.ones(corpus.contents.shards[number].documents, bool)
    from data.where import compile_where

    condition = compile_where(where)
    return condition.mask(corpus.columns(number, sorted(condition.names)))


def _pack(spec: PlanSpec, lengths: np.ndarray) -> Packed:
    if spec.method == "bucket":
        return pack.buckets(lengths, spec.lengths)[spec.size]
    return pack.pack(spec.method, lengths, spec.size)
