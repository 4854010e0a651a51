"""Locks between processes that wait for a sign of life, not for ever. flock's: the kernel lets go when a process dies."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from data.config import DataError

_POLL = 0.02


@contextmanager
def alone(lock: Path, seconds: float, sign: Callable[[], object] = lambda: None) -> Iterator[None]:
    """While no other process or thread has this lock. DataError when it was not to be had for so many seconds since
    `sign` last gave something else."""
    patience = Patience(seconds)
    with lock.open("ab") as file:
        while not take(file, fcntl.LOCK_EX):
            patience.wait(
                sign(), lambda: DataError(f"{lock}: held for {seconds:.0f} s by a process that hangs; end it")
            )
        yield


class Patience:
    """Waiting, but not for ever: for so many seconds since the last sign of life."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._sign = seconds, object()
        self.restart()

    def restart(self) -> None:
        self._until = time.monotonic() + self._seconds

    def wait(self, sign: object, error: Callable[[], Exception]) -> None:
        """Rest for a moment. sign: when it changes, there was life; error: made and raised when patience has ended."""
        if sign != self._sign:
            self._sign = sign
            self.restart()
        elif time.monotonic() > self._until:
            raise error()
        time.sleep(_POLL)


def take(lock: IO[bytes], how: int) -> bool:
    """Take a lock, fcntl.LOCK_SH or LOCK_EX, if it is to be had now."""
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pulse(part: Path) -> object:
    """Changes while a file is being written."""
    try:
        found = part.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_blocks
