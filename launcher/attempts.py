"""`<run>/attempts.jsonl`: how each attempt of a run began and why it ended, one line an attempt.

An attempt is one start of a run's ranks, by `triaxis train` or by a job. While it runs it stands in `attempt.json`; at its
end it becomes a line of `attempts.jsonl`. Where whoever should have written that line died with its ranks (a node without
power), the attempt that follows finds the file still there and writes the line for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from launcher.endtime import forget_end
from launcher.exits import AGAIN, DONE, FAILED, NEVER

FILE_NAME, OPEN_NAME = "attempts.jsonl", "attempt.json"
COMMITTED = re.compile(r"step_(\d{9,})")  # as parallel/checkpoint/store.py names a checkpoint once it is whole
TAIL = 1 << 16  # bytes at the end of metrics.jsonl in which the newest step is looked for


@dataclass(frozen=True)
class Attempt:
    """One start of a run's ranks. Times are seconds since the epoch."""

    attempt: int  # 1 for the first
    started: float
    ended: float | None  # None while it runs
    first_step: int  # where the checkpoint stood that it began from, 0 for fresh weights
    last_step: int  # the newest step it made; what lay beyond its newest checkpoint is made again
    saved_step: int  # where the newest whole checkpoint stood at its end: what the next attempt begins from
    world: int  # ranks
    code: int | None  # one of launcher/exits.py; None while it runs
    reason: str  # why it ended, for people: the message of whatever failed first
    job: str = ""  # of the scheduler, empty outside one
    nodes: tuple[str, ...] = ()  # host names of an allocation

    @property
    def progressed(self) -> bool:
        """Whether it left a newer checkpoint than it found, or had nothing left to do."""
        return self.saved_step > self.first_step or self.code == DONE

    @property
    def fruitless(self) -> bool:
        """Whether it failed without progress: one of a crash loop. Interruptions are nobody's fault."""
        return self.code == FAILED and not self.progressed


def begin_attempt(directory: Path, world: int, *, job: str = "", nodes: Sequence[str] = ()) -> Attempt:
    """Number the attempt that is about to start and note that it runs. Called by the one who starts ranks, before that."""
    directory.mkdir(parents=True, exist_ok=True)
    forget_end(directory)
    if (unended := running_attempt(directory)) is not None:
        seen = _last_seen(directory, unended)
        _append(directory, _ended(directory, unended, FAILED, "nobody was left to say how it ended", seen))
    past, stands = read_attempts(directory), _saved_step(directory)
    number = max((attempt.attempt for attempt in past), default=0) + 1
    begun = Attempt(number, time.time(), None, stands, stands, stands, world, None, "", job, tuple(nodes))
    partial = directory / f"{OPEN_NAME}.partial"
    partial.write_text(json.dumps(asdict(begun)))
    partial.replace(directory / OPEN_NAME)
    return begun


def end_attempt(directory: Path, attempt: Attempt, code: int, reason: str) -> Attempt:
    """Write the line of an attempt whose ranks have ended; returns it with all its fields.

    code: one of launcher/exits.py; whatever else a rank ended with counts as FAILED.
    """
    ended = _ended(directory, attempt, code if code in (DONE, AGAIN, NEVER) else FAILED, reason, time.time())
    _append(directory, ended)
    return ended


def read_attempts(directory: Path) -> list[Attempt]:
    """The attempts that have ended, oldest first; a line torn by a kill is left out."""
    try:
        lines = (directory / FILE_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [attempt for line in lines if (attempt := _parsed(line)) is not None]


def running_attempt(directory: Path) -> Attempt | None:
    """The attempt that runs, or whose end nobody noted."""
    try:
        return _parsed((directory / OPEN_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def fruitless_in_a_row(attempts: Sequence[Attempt]) -> int:
    """How many of the newest attempts failed without progress, one after another."""
    count = 0
    for attempt in reversed(attempts):
        if not attempt.fruitless:
            break
        count += 1
    return count


def _ended(directory: Path, attempt: Attempt, code: int, reason: str, when: float) -> Attempt:
    saved = _saved_step(directory)
    made = max(saved, _newest_step(directory, attempt.first_step, attempt.started))
    return replace(attempt, ended=when, last_step=made, saved_step=saved, code=code, reason=reason)


def _append(directory: Path, attempt: Attempt) -> None:
    """Add a line, durably, then take the note that it runs away: a kill in between leaves both, and the reader one."""
    if all(known.attempt != attempt.attempt for known in read_attempts(directory)):
        with open(directory / FILE_NAME, "ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
            torn = file.tell() and file.read(1) != b"\n"
            file.write((b"\n" if torn else b"") + json.dumps(asdict(attempt)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    running = running_attempt(directory)
    if running is None or running.attempt == attempt.attempt:  # else another attempt has taken the run over since
        (directory / OPEN_NAME).unlink(missing_ok=True)


def _parsed(line: str) -> Attempt | None:
    try:
        found = json.loads(line)
        known = {name: found[name] for name in Attempt.__dataclass_fields__ if name in found}
        return Attempt(**{**known, "nodes": tuple(known.get("nodes", ()))})
    except (ValueError, TypeError):
        return None


def _saved_step(directory: Path) -> int:
    """Step of the newest checkpoint, 0 where there is none; by its name, since reading it would take torch."""
    names = [path.name for path in (directory / "checkpoints").glob("step_*")]
    return max((int(found[1]) for name in names if (found := COMMITTED.fullmatch(name))), default=0)


def _newest_step(directory: Path, otherwise: int, since: float) -> int:
    """The newest step in metrics.jsonl, where ranks have written into it since a moment; one read at its end, since it grows
    to hundreds of megabytes."""
    with contextlib.suppress(OSError), open(directory / "metrics.jsonl", "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("kind") == "step" and record["time"] >= since:
                    return record["step"]
    return otherwise


def _last_seen(directory: Path, attempt: Attempt) -> float:
    """When an attempt that nobody ended last wrote anything."""
    try:
        return max(attempt.started, (directory / "metrics.jsonl").stat().st_mtime)
    except FileNotFoundError:
        return attempt.started
