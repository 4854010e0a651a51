"""The checkpoints directory of a run: attempts, finding, verifying, retention. Names are the protocol.

    attempt                                 the newest attempt of the run; whoever is not named here may not commit
    step_000001200/                         a checkpoint; it has this name only once it is whole
    step_000001200.tmp-<attempt>-<save>/    being written
    step_000001200.tmp-<attempt>-<save>     (a file) rank 0 gave this save up, and why
    step_000001200.corrupt/                 put aside, never loaded by itself
    .trash-step_000001200-<random>/         being deleted

An attempt is one start of a run's processes. A job that was requeued while its first processes still write has two
alive; the older one is fenced off, since it looks into `attempt` before each commit.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parallel.checkpoint.durable import fsync_directory, remove_tree, write_durable
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError, ForeignVersion, describe_os_error
from parallel.checkpoint.manifest import MANIFEST, Manifest, check_whole
from parallel.checkpoint.verify import verify_checkpoint

log = logging.getLogger(__name__)

_STEP = re.compile(r"step_(\d{9,})(\.corrupt)?")
_TEMPORARY = re.compile(r"(step_(\d{9,}))\.tmp-((\d+)-[0-9a-f]+)-\d+")


def step_name(step: int) -> str:
    """Directory name of a step's checkpoint."""
    return f"step_{step:09d}"


@dataclass(frozen=True)
class Found:
    """A checkpoint directory. `manifest` is None where it is not whole, and `problem` then says why."""

    step: int
    path: Path
    manifest: Manifest | None
    problem: str = ""

    @property
    def whole(self) -> bool:
        return self.manifest is not None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep: the newest `keep_last` (None: all), and for ever every `keep_every` steps and `keep`."""

    keep_last: int | None = None
    keep_every: int | None = None
    keep: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for name in ("keep_last", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CheckpointError(f"checkpoint.{name}={value}: must be at least 1; use null for no such rule")


class Store:
    """A run's `checkpoints/` directory as one rank of one attempt sees it.

    Only rank 0 calls `open_attempt`, `retain`, `quarantine` and `delete`; the attempt id that `open_attempt` returns
    is given to the other ranks' constructors. Without an attempt the store can only be read.
    """

    def __init__(self, directory: Path | str, rank: int = 0, world_size: int = 1, attempt: str | None = None) -> None:
        self.directory = Path(directory)
        self.rank = rank
        self.world_size = world_size
        self.attempt = attempt

    def path(self, step: int) -> Path:
        """Where a step's checkpoint is once it is committed."""
        return self.directory / step_name(step)

    def temporary(self, step: int, sequence: int) -> Path:
        """Where a step is written before it is committed; `sequence` counts this attempt's saves."""
        return self.directory / f"{step_name(step)}.tmp-{self.attempt}-{sequence:06d}"

    # Attempts

    def open_attempt(self) -> str:
        """Begin a new attempt: fence off all older ones, finish or remove what they left. Returns the attempt's id.

        Raises CheckpointError where the directory cannot be written.
        """
        assert self.rank == 0, "rank 0 opens an attempt and gives its id to the others"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            previous = self.newest_attempt()
            number = int(previous.partition("-")[0]) + 1 if previous else 1
            self.attempt = f"{number:06d}-{secrets.token_hex(4)}"
            write_durable(self.directory / "attempt", f"{self.attempt}\n".encode())
            self._clean(number)
        except OSError as error:
            raise CheckpointError(describe_os_error(error, self.directory)) from error
        return self.attempt

    def newest_attempt(self) -> str | None:
        """Id of the newest attempt, None where there was none yet."""
        try:
            text = (self.directory / "attempt").read_text().strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"\d+-[0-9a-f]+", text):
            raise CheckpointError(f"{self.directory / 'attempt'}: {text!r} is not an attempt; remove the file")
        return text

    def fenced(self) -> bool:
        """Whether a newer attempt has taken the run over, so that this one may not commit."""
        return self.newest_attempt() != self.attempt

    def _clean(self, number: int) -> None:
        """Remove what attempts older than `number` left. One that was whole but for its name is committed."""
        for entry in list(self.directory.iterdir()):
            match = _TEMPORARY.fullmatch(entry.name)
            if entry.name.startswith((".trash-", ".attempt.")):
                remove_tree(entry)
            elif match and int(match[4]) < number and not self._finish(entry, self.directory / match[1]):
                self.set_aside(entry)

    def _finish(self, temporary: Path, target: Path) -> bool:
        """Commit a checkpoint whose writer died between its manifest and its rename."""
        if target.exists() or not temporary.is_dir():
            return False
        try:
            check_whole(temporary)
            os.rename(temporary, target)
        except (CheckpointError, OSError):
            return False
        fsync_directory(self.directory)
        return True

    # Finding

    def list(self) -> tuple[Found, ...]:
        """All checkpoint directories, oldest first, whole or not, those put aside included."""
        found = [self._look(step, path) for step, path in self._steps()]
        return tuple(sorted(found, key=lambda f: (f.step, f.path.name)))

    def _steps(self) -> Sequence[tuple[int, Path]]:
        """(step, path) of every directory named as a checkpoint, newest first."""
        if not self.directory.is_dir():
            return []
        names = [(match, path) for path in self.directory.iterdir() if (match := _STEP.fullmatch(path.name))]
        return sorted(((int(match[1]), path) for match, path in names), reverse=True)

    @staticmethod
    def _look(step: int, path: Path) -> Found:
        if path.suffix == ".corrupt":
            return Found(step, path, None, f"{path}: put aside as corrupt")
        try:
            return Found(step, path, check_whole(path))
        except CheckpointError as error:
            return Found(step, path, None, str(error))

    def latest(self, *, fall_back: bool = True, verify: bool = False) -> Found | None:
        """The newest whole checkpoint, None where the run has none yet.

        fall_back: where the newest is not whole, take the newest whole one before it and log a warning; otherwise
        raise. verify: whole means every checksum, not only every size.
        Raises CheckpointCorrupt where the newest is not whole and may not be passed over, or where there are
        checkpoints and none is whole: a run is never started anew over its own wreck. Raises ForeignVersion for a
        checkpoint of another format version, whatever `fall_back` says.
        """
        problems: list[str] = []
        for step, path in self._steps():
            try:
                if path.suffix == ".corrupt":
                    raise CheckpointCorrupt(f"{path}: put aside as corrupt")
                manifest = check_whole(path)
                if verify:
                    verify_checkpoint(path)
            except ForeignVersion:
                raise
            except CheckpointCorrupt as error:
                problems.append(str(error))
                if not fall_back and path.suffix != ".corrupt":
                    raise
                log.warning("passed over: %s", error)
                continue
            return Found(step, path, manifest)
        if problems:
            raise CheckpointCorrupt(
                f"{self.directory}: none of its {len(problems)} checkpoints is whole ({'; '.join(problems[:3])}); "
                "restore one, or remove them to start anew"
            )
        return None

    def verify(self, step: int, *, part: int = 0, parts: int = 1) -> None:
        """Read every byte of a step's checkpoint and compare checksums.

        part, parts: look only at every `parts`-th file, so that ranks can share the work.
        Raises CheckpointCorrupt naming the bad files.
        """
        verify_checkpoint(self.path(step), part=part, parts=parts)

    # Removing

    def quarantine(self, step: int) -> Path:
        """Put a corrupt checkpoint aside as `step_N.corrupt`, where nobody loads it; returns the new path."""
        target = self.directory / f"{step_name(step)}.corrupt"
        try:
            if target.exists():
                self.set_aside(target)
            os.rename(self.path(step), target)
        except OSError as error:
            raise CheckpointError(describe_os_error(error, self.path(step))) from error
        fsync_directory(self.directory)
        return target

    def delete(self, step: int) -> None:
        """Remove a checkpoint, e.g. those after the step that a run was rewound to. Raises CheckpointError if held."""
        try:
            if not self._discard(self.path(step)):
                raise CheckpointError(f"{self.path(step)}: in use by a reader; try again when it has ended")
        except OSError as error:
            raise CheckpointError(describe_os_error(error, self.path(step))) from error

    def retain(self, rule: Retention) -> tuple[int, ...]:
        """Remove what the rule does not keep; returns the removed steps.

        Only whole checkpoints count towards `keep_last`, so damaged ones never push out the newest good one. What a
        reader holds stays until the next call.
        """
        if rule.keep_last is None or self.fenced():
            return ()
        removed: tuple[int, ...] = ()
        kept = 0
        for step, path in self._steps():
            if path.suffix == ".corrupt":
                continue
            if kept < rule.keep_last:
                kept += self._look(step, path).whole
            elif step in rule.keep:
                continue
            elif (rule.keep_every is None or step % rule.keep_every) and self._discard(path):
                removed += (step,)
        return removed

    def _discard(self, path: Path) -> bool:
        """Move to the trash unless somebody holds it."""
        try:
            file = open(path / MANIFEST, "rb")  # noqa: SIM115 (closed below, after the rename)
        except FileNotFoundError:
            self.set_aside(path)
            return True
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks: readers cannot hold either
                pass
            trash = self.to_trash(path)
        remove_tree(trash)
        return True

    def set_aside(self, path: Path) -> None:
        """Remove a directory or file of the store in one step, held or not; nothing happens where there is none."""
        with contextlib.suppress(FileNotFoundError):
            remove_tree(self.to_trash(path))

    def to_trash(self, path: Path) -> Path:
        """Rename out of sight, for the caller to delete: a kill while deleting then leaves no half checkpoint."""
        trash = self.directory / f".trash-{path.name}-{secrets.token_hex(4)}"
        os.rename(path, trash)
        fsync_directory(self.directory)
        return trash


def resolve(path: Path | str, step: int | None = None) -> Path:
    """The checkpoint directory that a user means by a run, a `checkpoints` or a checkpoint directory.

    step: take this step's rather than the newest whole one. Raises CheckpointError where there is none.
    """
    path = Path(path)
    if (path / MANIFEST).exists() or (_STEP.fullmatch(path.name) and path.is_dir()):
        return path
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    store = Store(directory)
    if step is not None:
        if not store.path(step).is_dir():
            raise CheckpointError(f"{store.path(step)}: no such checkpoint; there are {_steps_text(store)}")
        return store.path(step)
    found = store.latest()
    if found is None:
        check_whole(path)  # says what it is instead, e.g. another framework's checkpoint
        raise AssertionError("a directory without steps passed for a checkpoint")
    return found.path


def whole_steps(path: Path | str) -> list[int]:
    """Steps of the whole checkpoints of a run, or of a `checkpoints` directory, in order; none for a checkpoint itself."""
    path = Path(path)
    directory = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    is_one = (path / MANIFEST).exists() or not directory.is_dir()
    return [] if is_one else [found.step for found in Store(directory).list() if found.whole]


def _steps_text(store: Store) -> str:
    return ", ".join(str(found.step) for found in store.list() if found.whole) or "none"
