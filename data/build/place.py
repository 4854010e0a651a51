"""Where an unfinished build is: a hidden directory beside the corpus, with what is done so far and marks of it.

    .name.lock                     held by who builds
    .name.partial/plan.json        which build this is; another one does not go on with it
    .name.partial/clean-0/00012/   part 12, read and cleaned; clean-1/ … after each global cleaning step
    .name.partial/decided-0/       what that global step decided
    .name.partial/settled/         splits, copies, tokenizer
    .name.partial/written/00012/   part 12 as shards
    .name.partial/corpus/          the corpus while it is put together

A directory appears under its name when it is whole (written under another name, flushed to the disk, renamed), so its
being there is the mark that it is done. Two processes that do the same work, on one machine or two, write the same
bytes and one of them comes first: nothing here depends on locks that a shared file system may not have.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.build.plan import differences
from data.config import DataError


class Place:
    """The directories of one build. directory: where the corpus will be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.partial = directory.with_name(f".{directory.name}.partial")
        self.corpus = self.partial / "corpus"
        self.settled = self.partial / "settled"

    def cleaned(self, stage: int, part: int) -> Path:
        return self.partial / f"clean-{stage}" / f"{part:05d}"

    def decided(self, stage: int) -> Path:
        return self.partial / f"decided-{stage}"

    def written(self, part: int) -> Path:
        return self.partial / "written" / f"{part:05d}"

    def begin(self, plan: dict[str, Any], alone: bool) -> None:
        """Makes the hidden directory, or goes on in it. One of another build is begun anew when nobody else can be in
        it (`alone`), else refused: DataError."""
        found = self._plan()
        if found is not None and found != plan:
            if not alone:
                raise DataError(
                    f"{self.partial}: an unfinished build with other options or files is there "
                    f"({differences(found, plan) or 'of other parts'}); finish it with its own options, or delete it"
                )
            shutil.rmtree(self.partial)
        self.partial.mkdir(exist_ok=True)
        path = self.partial / "plan.json"
        if not path.exists():
            own = path.with_name(f"plan.{_me()}")
            own.write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
            os.replace(own, path)

    def _plan(self) -> dict[str, Any] | None:
        """The plan in the hidden directory, None where there is none, {} where it cannot be read."""
        if not self.partial.exists():
            return None
        try:
            return json.loads((self.partial / "plan.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None if not any(self.partial.iterdir()) else {}
        except ValueError:
            return {}

    def end(self) -> None:
        """Removes the hidden directory."""
        shutil.rmtree(self.partial, ignore_errors=True)


def _me() -> str:
    return f"{socket.gethostname()}-{os.getpid()}.tmp"


@contextmanager
def committed(path: Path) -> Iterator[Path]:
    """A new directory to write to, which becomes `path` when the block ends well; gone when it does not."""
    own = path.with_name(f"{path.name}.{_me()}")
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    try:
        yield own
        flush(own)
        try:
            os.rename(own, path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(own, ignore_errors=True)  # another process was first, with the same bytes
    except BaseException:
        shutil.rmtree(own, ignore_errors=True)
        raise


def flush(directory: Path) -> None:
    """Makes a directory and all in it survive a power cut."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(directory: Path, shared: bool, waiting: Callable[[], None]) -> Iterator[int]:
    """Holds the lock of a corpus's directory, alone or with the other shares of one build; waits for who has it.

    Gives the descriptor, which processes of the build inherit: while one of them lives the lock is held. On a file
    system without locks it goes on without (see the module).
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    wanted = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, wanted | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, wanted)
        except OSError:
            pass
        yield lock.fileno()


class Presence:
    """Tells other machines that a share of a build is being worked on: a file that is touched every few seconds."""

    EVERY, GONE = 5.0, 60.0

    def __init__(self, place: Place, share: str) -> None:
        self._directory = place.partial / "present"
        self._directory.mkdir(exist_ok=True)
        self._own = self._directory / share
        self._touched = 0.0
        self.touch()

    def touch(self) -> None:
        """Shows that this share is alive; cheap when called often."""
        if time.monotonic() - self._touched > self.EVERY:
            self._own.touch()
            self._touched = time.monotonic()

    def others(self) -> bool:
        """Whether another share was alive a minute ago, by the clock of the file system that both see."""
        self._own.touch()
        now = self._own.stat().st_mtime
        with contextlib.suppress(FileNotFoundError):
            return any(
                path != self._own and now - path.stat().st_mtime < self.GONE for path in self._directory.iterdir()
            )
        return True

    def leave(self) -> None:
        """This share does no more."""
        self._own.unlink(missing_ok=True)
