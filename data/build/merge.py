"""Finished parts to a corpus: files moved together, manifest, and the directory appears all at once."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import zstandard

from data import baselines
from data.build.clean import QUARANTINE
from data.build.encode import SPLITS, read_splits
from data.build.job import Job
from data.build.place import Place, flush
from data.build.plan import Part
from data.build.settle import read_settled
from data.manifest import Manifest, Split
from data.shards import Blocks
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer

CLEANING = "cleaning.json"
"""Beside the manifest: what each cleaning step did, with a sample of what it dropped."""


def merge(job: Job, parts: Sequence[Part], spec: dict[str, Any]) -> Manifest:
    """Puts the corpus together and publishes it. May be interrupted anywhere, and done by two processes at once."""
    place, settled = job.place, read_settled(job)
    place.corpus.mkdir(exist_ok=True)
    found = [read_splits(place.written(part.number)) for part in parts]
    splits = {name: Split(tuple(shard for own in found for shard in own[name].shards)) for name in SPLITS}
    assert sum(split.documents for split in splits.values()) == settled.documents
    for part in parts:
        _move(place.written(part.number), place.corpus)
    shutil.copytree(place.settled / TOKENIZER_DIRECTORY, place.corpus / TOKENIZER_DIRECTORY, dirs_exist_ok=True)
    _write_quarantine(job, parts)
    if settled.tallies:
        text = json.dumps(settled.tallies, indent=1, ensure_ascii=False) + "\n"
        (place.corpus / CLEANING).write_text(text, encoding="utf-8")
    made = Tokenizer.load(place.corpus / TOKENIZER_DIRECTORY)
    manifest = Manifest(
        name=job.corpus.name,
        spec=spec,
        tokenizer_kind=made.kind,
        tokenizer_fingerprint=made.fingerprint,
        vocab_size=made.vocab_size,
        eod=made.eod,
        dtype=made.dtype.name,
        columns=settled.columns,
        splits=splits,
        baselines=None,
        skipped=settled.skipped,
        quarantined=settled.quarantined,
        cleaning=[{name: tally[name] for name in ("step", "before", "after")} for tally in settled.tallies],
        provenance=provenance(),
    )
    train, validation = (Blocks(place.corpus, splits[name], manifest.dtype) for name in SPLITS)
    manifest = replace(manifest, baselines=baselines.compute(train, validation, made.vocab_size, made.eod))
    manifest.save(place.corpus)
    _publish(place)
    return manifest


def provenance() -> dict[str, str]:
    """Versions of what makes a corpus."""
    return {"python": platform.python_version(), "numpy": np.__version__, "tokenizers": tokenizers.__version__}


def _move(part: Path, corpus: Path) -> None:
    """Moves the shards of a part; what another process or an interrupted merge moved is where it should be."""
    for file in sorted(part.iterdir()):
        if file.name != "shards.json":
            with contextlib.suppress(FileNotFoundError):
                os.rename(file, corpus / file.name)


def _write_quarantine(job: Job, parts: Sequence[Part]) -> None:
    """All that is quarantined, in order, one JSON object a line; no file where there is nothing."""
    files = [job.place.cleaned(0, part.number) / QUARANTINE for part in parts]
    if not any(file.stat().st_size for file in files):
        return
    with (
        (job.place.corpus / f"{QUARANTINE}.zst").open("wb") as out,
        zstandard.ZstdCompressor().stream_writer(out) as to,
    ):
        for file in files:
            with file.open("rb") as lines:
                shutil.copyfileobj(lines, to)


def _publish(place: Place) -> None:
    """Makes the finished directory visible in one step that survives a power cut."""
    flush(place.corpus)
    try:
        os.rename(place.corpus, place.directory)
    except OSError:
        if not (place.directory / "manifest.json").exists():  # else another process was first, with the same bytes
            raise
    descriptor = os.open(place.directory.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    place.end()
