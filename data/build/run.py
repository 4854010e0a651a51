"""Text to a finished corpus: shards, tokenizer and manifest, in one directory that appears all at once.

The inputs are cut into parts by their sizes alone. Each part is read and cleaned (`clean`), what concerns all of them is
decided once (`settle`), each part is encoded into shards of its own (`encode`), and the shards are put together (`merge`).
Parts are done by any number of processes, of any number of machines that share the file system, and each is marked when
it is done (`place`): the bytes are the same however the work was shared out, and after an interruption it goes on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.build.job import Job, Progress
from data.build.merge import merge, provenance
from data.build.place import Place, Presence, locked
from data.build.plan import Part, differences, plan_parts, spec_of
from data.build.settle import decide, read_settled, settle
from data.build.work import ENCODE, Workers
from data.config import CorpusConfig, DataError, TokenizerConfig
from data.manifest import MANIFEST, Manifest
from data.shards import Blocks
from data.sources import list_files


def build(
    corpus: CorpusConfig,
    tokenizer: TokenizerConfig,
    progress: Progress | None = None,
    *,
    share: tuple[int, int] | None = None,
    seams: Any = None,
) -> Manifest | None:
    """Builds the corpus, or returns the one that is there when it was built from the same options and text.

    progress: see `Progress`. share: (i, n), i from 1 to n, does the i-th of n shares of the work, beside others that do
    theirs; None is returned unless this share was the last to be done. seams: what cleaning steps need from elsewhere
    (`data.clean.base.Seams`). DataError for every mistake that a person can repair. After an error or an interruption,
    what is finished is kept in a hidden directory, and the next build with the same options goes on from there.
    """
    directory = Path(corpus.directory).expanduser().absolute()
    show = progress or (lambda done, total, note, tokens: None)
    if share is not None and not 1 <= share[0] <= share[1]:
        raise DataError(f"--shard {share[0]}/{share[1]}: it must be i/n with i from 1 to n")
    try:
        waiting = "waiting for another build of this corpus"
        with locked(directory, share is not None, lambda: show(0, 1, waiting, 0)) as lock:
            found = _existing(directory, corpus, tokenizer)
            return found or _Build(directory, corpus, tokenizer, show, share, seams, lock).run()
    except OSError as error:
        kept = Place(directory).partial
        more = f"; what is finished is kept in {kept}, the next build goes on from there" if kept.exists() else ""
        raise DataError(
            f"corpus.directory = {corpus.directory}: cannot build there ({error.strerror or error}); free space, allow "
            f"writing, or choose another directory{more}"
        ) from error


class _Build:
    """One build, or one share of one."""

    def __init__(
        self,
        directory: Path,
        corpus: CorpusConfig,
        tokenizer: TokenizerConfig,
        progress: Progress,
        share: tuple[int, int] | None,
        seams: Any,
        lock: int,
    ) -> None:
        self._tokenizer, self._progress, self._share = tokenizer, progress, share
        self._job = Job(corpus, str(directory), seams)
        self._workers = Workers(self._job, corpus.workers or len(os.sched_getaffinity(0)), lock)
        files = list_files(corpus.sources)
        self._spec = spec_of(corpus, tokenizer, files)
        self._parts = plan_parts(files, corpus.part_bytes)
        self._presence: Presence | None = None

    def run(self) -> Manifest | None:
        """All stages; None where other shares have work left that this one waits for in vain."""
        place = self._job.place
        place.begin({**self._spec, **provenance()}, alone=self._share is None)
        if self._share:
            self._presence = Presence(place, f"{self._share[0]}-of-{self._share[1]}")
        try:
            return self._stages(place)
        finally:
            self._workers.close()
            if self._presence:
                self._presence.leave()

    def _stages(self, place: Place) -> Manifest | None:
        total = sum(part.size for part in self._parts)
        for stage in range(self._job.stages):
            note = "reading" if stage == 0 else f"cleaning, pass {stage + 1}"
            if not self._all_parts(stage, partial(_cleaned, place, stage), note, total, True):
                return None
            if stage < self._job.stages - 1 and not place.decided(stage).exists():
                self._progress(total, total, "deciding over all documents", 0)
                decide(self._job, stage, self._parts)
        if not place.settled.exists():
            note = "training the tokenizer" if self._tokenizer.trained else "reading the tokenizer"
            self._progress(total, total, note, 0)
            settle(self._job, self._tokenizer, self._parts)
        size = read_settled(self._job).bytes
        if not self._all_parts(ENCODE, lambda part: place.written(part.number), "encoding", size, False):
            return None
        self._progress(size, size, "computing baselines", 0)
        return merge(self._job, self._parts, self._spec)

    def _all_parts(self, stage: int, mark: Callable[[Part], Path], note: str, total: int, wait: bool) -> bool:
        """Does this share's parts of a stage; whether all are done then, waiting for others that are at it if asked."""
        mine, shares = self._share or (1, 1)
        own = [part for part in self._parts if part.number % shares == mine - 1]
        left = [part for part in own if not mark(part).exists()]
        done, tokens = (0 if len(left) == len(self._parts) else _share_of(own, left, total, self._parts)), 0

        def report(size: int, more: int) -> None:
            nonlocal done, tokens
            done, tokens = done + size, tokens + more
            self._progress(min(done, total), total, note, tokens)
            if self._presence:
                self._presence.touch()

        self._workers.run(stage, left, report)
        while missing := sum(not mark(part).exists() for part in self._parts):
            if not (wait and self._presence and self._presence.others()):
                return False
            self._progress(min(done, total), total, f"waiting for {missing} parts of other shares", tokens)
            time.sleep(0.5)
        return True


def _cleaned(place: Place, stage: int, part: Part) -> Path:
    """What marks a part as done in a stage of reading and cleaning."""
    return place.cleaned(stage, part.number)


def _share_of(own: list[Part], left: list[Part], total: int, parts: list[Part]) -> int:
    """How far a stage is when all but `left` was done before, in the units of `total`."""
    every = max(sum(part.size for part in parts), 1)
    return total * (every - sum(part.size for part in left)) // every if len(left) < len(own) else 0


def _existing(directory: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig) -> Manifest | None:
    """The corpus in the directory if it is the one asked for, None if there is none, DataError if it is another."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).exists():
        raise DataError(
            f"corpus.directory = {corpus.directory}: it exists and is not a corpus (no {MANIFEST}); choose another "
            "directory, or empty this one"
        )
    manifest = Manifest.load(directory)
    try:
        files = list_files(corpus.sources)
    except DataError:
        files = None  # the text may be gone once the corpus is built; what cannot be compared is not
    different = differences(manifest.spec, spec_of(corpus, tokenizer, files))
    if different:
        raise DataError(
            f"corpus.directory = {corpus.directory}: it holds a corpus built otherwise ({different}); "
            f"delete it (rm -r {directory}) or choose another corpus.directory"
        )
    for split in manifest.splits.values():
        Blocks(directory, split, manifest.dtype)  # names a shard that is missing or of the wrong size
    return manifest
