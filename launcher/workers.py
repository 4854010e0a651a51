"""Starting ranks and watching over them: the first failure ends all within seconds, and its error is the one shown.

Each rank is `python -m launcher.train` with torchrun's environment variables and TRIAXIS_RECIPE, the frozen recipe it
reads. Rank 0 keeps the terminal; everything else a rank prints goes to `<run>/logs/rank_NNNNN.log`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

INTERRUPTED = 75  # EX_TEMPFAIL: state is saved, the same command goes on
GRACE_SECONDS = 2.0  # between a failure and the end of the other ranks: they cannot go on without the failed one


class WorkerError(RuntimeError):
    """A rank failed; the message is that of the first one."""


@dataclass(frozen=True)
class Failure:
    """How a rank died. when: seconds since the epoch."""

    rank: int
    when: float
    message: str
    detail: str


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_path(directory: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return directory / "logs" / f"rank_{rank:05d}.log"


def _error_path(directory: Path, rank: int) -> Path:
    return directory / "logs" / f"rank_{rank:05d}.error"


def write_failure(directory: Path, rank: int, error: BaseException, *, users: bool) -> None:
    """Called by a dying rank: leave its error where the launcher finds it. users: a message is enough, no traceback."""
    path = _error_path(directory, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = str(error) if users else f"{type(error).__name__}: {error}"
    detail = "" if users else "".join(traceback.format_exception(error))
    path.write_text(json.dumps({"when": time.time(), "message": text, "detail": detail}))


def run_workers(directory: Path, recipe_path: Path, world_size: int, threads: int, device: str, **extra: str) -> int:
    """Start `world_size` ranks on this machine and wait. Returns 0 (finished) or INTERRUPTED.

    extra: further environment variables. Raises WorkerError with the first failing rank's error.
    """
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    for old in (directory / "logs").glob("rank_*.error"):
        old.unlink()
    common = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": device,
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TRIAXIS_RECIPE": str(recipe_path),
        "TRIAXIS_PARENT": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]),
        **extra,
    }
    ranks = [_start(directory, rank, common) for rank in range(world_size)]
    with _Forwarding(ranks):
        return _watch(directory, ranks)


def _start(directory: Path, rank: int, common: dict[str, str]) -> subprocess.Popen:
    with open(log_path(directory, rank), "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-u", "-m", "launcher.train"],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
        )


class _Forwarding:
    """Passes SIGINT, SIGTERM and SIGUSR2 on to the ranks; a second one kills them."""

    def __init__(self, ranks: list[subprocess.Popen]) -> None:
        self.ranks, self.count = ranks, 0
        self.previous: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self.previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        _end(self.ranks)

    def _handle(self, number: int, frame: object) -> None:
        self.count += 1
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def _watch(directory: Path, ranks: list[subprocess.Popen]) -> int:
    failed_at: float | None = None
    ended: dict[int, float] = {}
    while True:
        for index, rank in enumerate(ranks):
            if index not in ended and rank.poll() is not None:
                ended[index] = time.time()
                if rank.returncode not in (0, INTERRUPTED):
                    failed_at = failed_at or time.time()
        if len(ended) == len(ranks) or (failed_at and time.time() - failed_at > GRACE_SECONDS):
            break
        time.sleep(0.05)
    if failed_at is None:
        return INTERRUPTED if any(rank.returncode == INTERRUPTED for rank in ranks) else 0
    failures = [_failure(directory, index, ranks[index].returncode, when) for index, when in ended.items()]
    _end(ranks)
    raise WorkerError(_describe(directory, [failure for failure in failures if failure]))


def _failure(directory: Path, rank: int, code: int, when: float) -> Failure | None:
    if code in (0, INTERRUPTED):
        return None
    try:
        told = json.loads(_error_path(directory, rank).read_text())
        return Failure(rank, told["when"], told["message"], told["detail"])
    except (OSError, ValueError, KeyError):
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        # it died without a word, before the others can have noticed
        return Failure(rank, when - 3600, f"{how}{hint}", "")


def _describe(directory: Path, failures: list[Failure]) -> str:
    first = min(failures, key=lambda failure: failure.when)
    lines = [f"rank {first.rank} failed first: {first.message}" if first.detail or len(failures) > 1 else first.message]
    if first.detail:
        lines.append(first.detail.rstrip())
    if first.detail or not lines[0].endswith(first.message) or "killed" in first.message:
        lines.append(f"log: {log_path(directory, first.rank)}")
    return "\n".join(lines)


def _end(ranks: list[subprocess.Popen]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()


def die_with_parent() -> None:
    """Ask the kernel to end this rank when its launcher dies, however that dies (Linux prctl PR_SET_PDEATHSIG)."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(os.environ.get("TRIAXIS_PARENT", os.getppid())):
        os._exit(1)


class StopRequest:
    """SIGTERM, SIGINT and SIGUSR2 as a flag that the loop reads between steps; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        if self.wanted and number == signal.SIGINT:
            os._exit(130)
        self.wanted = True
