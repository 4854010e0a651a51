"""How ranks tell why they died, and which of them is to blame: `<run>/logs/rank_NNNNN.error`, one file a rank that failed.

When one rank dies, its peers soon die too: their collectives break. Exit codes alone would then say anything (srun hands on
the highest, and its own SIGKILLs count as 137), so whoever starts ranks reads these files and lets the first cause decide.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.exits import AGAIN, DONE, FAILED, NEVER

PEER_ERRORS = (
    "gloo/transport",
    "Connection closed by peer",
    "Connection reset by peer",
    "NCCL",
    "TCPStore",
    "ProcessGroup",
)
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # by which a run is asked to stop, see workers.StopRequest


@dataclass(frozen=True)
class Failure:
    """How a rank died. when: seconds since the epoch, by its own host's clock."""

    rank: int
    when: float
    message: str  # a line or two for people
    detail: str = ""  # the traceback, where there is one to be shown
    host: str = ""
    code: int = FAILED  # what its error asks for, one of launcher/exits.py
    echo: bool = False  # a collective broke: most likely since another rank had died before
    complete: bool = False  # the message says itself which ranks it is about


@dataclass(frozen=True)
class Verdict:
    """What is to become of a run whose ranks have ended. code: one of launcher/exits.py."""

    code: int
    reason: str = ""
    first: Failure | None = None  # the one that decided, where any rank left word


def log_path(directory: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return directory / "logs" / f"rank_{rank:05d}.log"


def _error_path(directory: Path, rank: int) -> Path:
    return directory / "logs" / f"rank_{rank:05d}.error"


def write_failure(directory: Path, rank: int, error: BaseException, *, code: int, users: bool) -> None:
    """Called by a dying rank: leave its error where whoever started it looks. users: a message is enough, no traceback."""
    text = str(error) if users else f"{type(error).__name__}: {error}"
    detail = "" if users else "".join(traceback.format_exception(error))
    blamed = getattr(error, "ranks", ())  # of an error that all ranks raise alike: those whose machines it is about
    echo = rank not in blamed if blamed else is_echo(error)
    write_word(directory, Failure(rank, time.time(), text, detail, socket.gethostname(), code, echo, bool(blamed)))


def write_word(directory: Path, failure: Failure) -> None:
    """Leave a failure that may be another rank's: whole or not at all, since its reader may come at any moment."""
    path = _error_path(directory, failure.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(failure)))
    partial.replace(path)


def is_echo(error: BaseException) -> bool:
    """Whether an error is of the kind that a peer's death brings."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return "DistError" in kinds or ("RuntimeError" in kinds and any(sign in str(error) for sign in PEER_ERRORS))


def clear_failures(directory: Path) -> None:
    """Take away what ranks of earlier attempts left; called before ranks are started."""
    for old in (directory / "logs").glob("rank_*.error"):
        old.unlink(missing_ok=True)


def read_failures(directory: Path) -> list[Failure]:
    """What the ranks of this attempt left, in the order of time."""
    found = (_read(path) for path in (directory / "logs").glob("rank_*.error"))
    return sorted((failure for failure in found if failure), key=lambda failure: failure.when)


def _read(path: Path) -> Failure | None:
    try:
        return Failure(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def first_cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that brought the others: the earliest that is no echo, however the clocks of hosts differ."""
    return min(failures, key=lambda failure: (failure.echo, failure.when), default=None)


def judge(directory: Path, world: int, code: int) -> Verdict:
    """What becomes of a run whose ranks have all ended, started by srun or alike.

    code: of srun, which is the highest of the ranks', or 128 + n (of a starter here -n) where a signal n ended one. A word
    left by a rank comes before it; without one, done and again are believed and everything else may be tried anew, a batch
    of ranks that died in silence (out of memory, a node gone) among it.
    """
    if code in (DONE, AGAIN):
        return Verdict(code)
    failures = read_failures(directory)
    first = first_cause(failures)
    if first is None and code in (sign for number in STOPS for sign in (128 + number, -number)):
        return Verdict(AGAIN, f"{how_ended(code)} before ranks could listen: there was nothing to save")
    if first is None:
        return Verdict(code if code == NEVER else FAILED, f"no rank left word: {how_ended(code)}")
    if not first.echo:
        return Verdict(first.code, tell_first(first), first)
    silent = sorted(set(range(world)) - {failure.rank for failure in failures})
    if not silent:
        return Verdict(FAILED, tell_first(first), first)
    names = ", ".join(str(rank) for rank in silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
    ended = f"rank{'s' if len(silent) > 1 else ''} {names} ended without a word"
    return Verdict(FAILED, f"{ended}; {_who(first)} noticed: {first.message}", first)


def how_ended(code: int) -> str:
    """An exit code in words; below 0 and above 128 a signal ended it (subprocess's way and the shell's)."""
    number = -code if code < 0 else code - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"ended with exit code {code}"
    return f"was killed by {name}{' (out of memory?)' if number == signal.SIGKILL else ''}"


def tell_first(failure: Failure) -> str:
    """Who failed first, and with what, in a line."""
    if failure.complete:
        return failure.message
    return f"{_who(failure)} failed first: {failure.message}"


def _who(failure: Failure) -> str:
    elsewhere = failure.host and failure.host != socket.gethostname()
    return f"rank {failure.rank}" + (f" on {failure.host}" if elsewhere else "")
