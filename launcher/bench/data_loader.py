"""A loader of `bench data` in a process of its own: writes its form of the documents, or gives batches when told to.

The environment says which: TRIAXIS_BENCH_LOADER = {"name", "place", "seed", "write", "sample"}; sample: the first of ours.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from launcher.bench.data_rows import LENGTH, ROWS, TOKENS, Batch, check, halves
from launcher.bench.turns import BORN, Turnstile

LOADER = "TRIAXIS_BENCH_LOADER"
OURS = {"Triaxis": "blocks", "Triaxis, a document a member": "index", "Triaxis, many shards": "many"}
"""Our contenders, and the directory that each reads."""


def main() -> None:
    """Write, or be a contender."""
    task = json.loads(os.environ[LOADER])
    name, place = task["name"], Path(task["place"])
    torch.set_num_threads(1)
    if task["write"]:
        from launcher.bench.data_peers import Documents, peer

        peer(name).write(Documents(place.parent), place)
        return
    batches = _ours(place.parent / OURS[name], task) if name in OURS else _theirs(name, place, task)
    turnstile = Turnstile()
    began = time.monotonic()
    for number, batch in enumerate(batches()):
        if number == 0:
            now = time.monotonic()
            turnstile.startup = {"opened": now - began, "from command": now - float(os.environ[BORN])}
            check(batch)
        turnstile.step_done(0.0)
    raise RuntimeError(f"{name}: its batches ended")


Batches = Callable[[], Iterator[Batch]]


def _ours(directory: Path, task: dict[str, Any]) -> Batches:
    """As a run reads: concatenated and cut, units of one sequence shuffled over all of the corpus, from a sample on."""
    from data.corpus import Corpus
    from data.plan import PlanSpec
    from data.source import Source
    from data.stream import Stream

    def batches() -> Iterator[Batch]:
        stream = Stream([Source(Corpus(directory, "train"), PlanSpec("cut", LENGTH), task["seed"])])
        place = task["sample"] * LENGTH
        while True:
            yield halves(stream.batch(place, ROWS, LENGTH).tokens)
            place += TOKENS

    return batches


def _theirs(name: str, place: Path, task: dict[str, Any]) -> Batches:
    from launcher.bench.data_peers import peer

    found = peer(name)
    return lambda: iter(found.batches(place, task["seed"]))


if __name__ == "__main__":
    main()
