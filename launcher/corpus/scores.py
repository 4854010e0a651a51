"""Documents by difficulty for a run's model: bits per byte of each, and the ordering that follows from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.clean.base import Scorer
from data.documents import Documents
from data.orderings import Ordered, Ordering, make
from data.orderings.simple import Difficulty
from data.progress import Progress
from data.tokenizers import load_corpus_tokenizer
from launcher.config import RecipeError
from launcher.scoring import load_scorer
from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.store import MANIFEST, resolve

COLUMN = "bits_per_byte"
_TOGETHER = 256  # documents that are scored at once: windows of like length share batches


def by_model(
    corpus: Path, name: str, method: Difficulty, splits: Sequence[str], progress: Progress
) -> tuple[Ordering, bool]:
    """The ordering by bits per byte under the run's newest checkpoint, which is part of the ordering's identity."""
    try:
        place = resolve(Path(method.run))
    except CheckpointError as error:
        raise RecipeError(f"--run={method.run}: {error}") from error
    checkpoint = {"step": place.name, "sha256": hashlib.sha256((place / MANIFEST).read_bytes()).hexdigest()}

    def call(documents: Documents, progress: Progress) -> Ordered:
        scorer = load_scorer(str(place), method.reach, "--run")
        values = bits_per_byte(documents, scorer, progress)
        return method.order(values, {COLUMN: pa.array(values, pa.float64(), from_pandas=True)})

    return make(corpus, name, "difficulty", method, splits, progress, call=call, identity={"checkpoint": checkpoint})


def bits_per_byte(documents: Documents, scorer: Scorer, progress: Progress) -> np.ndarray:
    """Of every document, float64 [documents]; NaN for one without text."""
    tokenizer = load_corpus_tokenizer(documents.path)
    found = np.full(len(documents), np.nan)
    for chunk in documents.chunks():
        for start in range(0, len(chunk), _TOGETHER):
            some = range(start, min(start + _TOGETHER, len(chunk)))
            scores = scorer([tokenizer.decode(chunk.document(place)[:-1]) for place in some])
            there = scores.bytes > 0
            values = np.divide(scores.nats, scores.bytes * math.log(2), where=there, out=np.full(len(some), np.nan))
            found[chunk.first + start : chunk.first + start + len(some)] = values
            progress(chunk.first + start + len(some), len(documents), "scoring")
    return found
