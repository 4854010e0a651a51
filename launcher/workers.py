"""Starting ranks and watching over them: the first failure ends all within seconds, and its error is the one shown.

Each rank is `python -m launcher.train` with torchrun's environment variables and TRIAXIS_RECIPE, the frozen recipe it
reads; several ranks without GPUs are forks of one process that has imported what they need (launcher/nursery.py). Rank 0
keeps the terminal; everything else a rank prints goes to `<run>/logs/rank_NNNNN.log`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from launcher.exits import AGAIN, DONE, FAILED
from launcher.failure import Failure, clear_failures, first_cause, how_ended, log_path, read_failures, tell_first
from launcher.nursery import Nursery
from launcher.spawn import start_module

GRACE_SECONDS = 2.0  # between a failure and the end of the other ranks: they cannot go on without the failed one


class Rank(Protocol):
    """A rank as its launcher sees it: a process of its own, or a fork of the nursery."""

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


class WorkerError(RuntimeError):
    """A rank failed; the message is that of the first one. code: what its error asks for, one of launcher/exits.py."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def free_port(seed: int | None = None) -> int:
    """A TCP port nobody listens on, outside the range from which the kernel serves outgoing connections: rank 0 binds
    it seconds later, when it has imported torch, and on a busy machine a port of that range is often taken by then.

    seed: where to look first; jobs that share a node and take their number for it do not meet. None for anywhere."""
    ports = list(range(10_000, _ephemeral_start()))
    for port in (random.SystemRandom() if seed is None else random.Random(seed)).sample(ports, len(ports)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise WorkerError("no TCP port is free between 10000 and the kernel's ip_local_port_range")


def _ephemeral_start() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first = 0
    return first if first > 11_000 else 32_768


def run_workers(directory: Path, recipe_path: Path, world_size: int, threads: int, device: str, **extra: str) -> int:
    """Start `world_size` ranks on this machine and wait. Returns 0 (finished) or AGAIN.

    extra: further environment variables. Raises WorkerError with the first failing rank's error.
    """
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    clear_failures(directory)
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads),
        "DS_ACCELERATOR": device,
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "TRIAXIS_RECIPE": str(recipe_path),
        "TRIAXIS_PARENT": str(os.getpid()),
        **extra,
    }
    ranks: list[Rank] = []
    with contextlib.ExitStack() as ending:
        signals = ending.enter_context(_Forwarding(ranks))  # first: a signal must not leave half a world
        if device == "cpu" and world_size > 1:
            nursery = Nursery(directory, world_size, common)
            ranks += nursery.ranks
            ending.callback(nursery.close)
            ending.callback(_end, ranks)
        else:
            for rank in range(world_size):
                ranks.append(_start(directory, rank, common))
        if signals.count:
            signals.forward()
        return _watch(directory, ranks, signals)


def _start(directory: Path, rank: int, common: dict[str, str]) -> Rank:
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    return start_module("launcher.train", log=log_path(directory, rank), variables=common | place, terminal=rank == 0)


class _Forwarding:
    """Passes SIGINT, SIGTERM and SIGUSR2 on to the ranks; a second one kills them."""

    def __init__(self, ranks: Sequence[Rank]) -> None:
        self.ranks, self.count = ranks, 0
        self.previous: dict[int, object] = {}

    def __enter__(self) -> _Forwarding:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self.previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        _end(self.ranks)

    def _handle(self, number: int, frame: object) -> None:
        self.count += 1
        self.forward()

    def forward(self) -> None:
        """Tell every rank that lives."""
        for rank in self.ranks:
            if rank.poll() is None:
                rank.send_signal(signal.SIGTERM if self.count == 1 else signal.SIGKILL)


def _watch(directory: Path, ranks: Sequence[Rank], signals: _Forwarding) -> int:
    failed_at: float | None = None
    ended: dict[int, tuple[float, int]] = {}  # when, and with which exit code
    while True:
        for index, rank in enumerate(ranks):
            if index not in ended and (code := rank.poll()) is not None:
                ended[index] = time.time(), code
                if code not in (DONE, AGAIN):
                    failed_at = failed_at or time.time()
        if len(ended) == len(ranks) or (failed_at and time.time() - failed_at > GRACE_SECONDS):
            break
        time.sleep(0.05)
    if failed_at is None:
        return AGAIN if any(code == AGAIN for _, code in ended.values()) else 0
    words = {failure.rank: failure for failure in read_failures(directory)}
    for index, (when, code) in ended.items():
        if index not in words and code not in (DONE, AGAIN):
            # without a word it died before the others can have noticed
            words[index] = Failure(index, when - 3600, how_ended(code))
    _end(ranks)
    if signals.count > 1:
        raise WorkerError("ended by a second signal; the same command goes on from the newest checkpoint", AGAIN)
    if signals.count and any(code == -signal.SIGTERM for _, code in ended.values()):
        return AGAIN  # so early that a rank's Python had not begun to listen: there was nothing to save
    first = first_cause(words.values())
    assert first is not None
    raise WorkerError(_describe(directory, first, alone=len(words) == 1), first.code)


def _describe(directory: Path, first: Failure, *, alone: bool) -> str:
    silent = not first.host  # it left no word: the message is ours, and does not say whom it is about
    lines = [tell_first(first) if first.detail or silent or not alone else first.message]
    if first.detail:
        lines.append(first.detail.rstrip())
    if first.detail or lines[0] != first.message or "killed" in first.message:
        lines.append(f"log: {log_path(directory, first.rank)}")
    return "\n".join(lines)


def _end(ranks: Sequence[Rank]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
    for rank in ranks:
        rank.wait()


def die_with_parent() -> None:
    """Ask the kernel to end this rank when its launcher dies, however that dies (Linux prctl PR_SET_PDEATHSIG).

    Under torchrun or srun there is no launcher of ours, and they see to it themselves.
    """
    import ctypes

    if "TRIAXIS_PARENT" not in os.environ:
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(os.environ["TRIAXIS_PARENT"]):
        os._exit(1)


def name_process(name: str) -> None:
    """What ps and top call this process, in at most 15 characters (Linux prctl PR_SET_NAME), none of them a space: SLURM's
    proctrack/linuxproc cannot read /proc/PID/stat of a process with a space in its name, and signals or kills none such."""
    import ctypes

    assert len(name) <= 15 and not re.search(r"\s", name), name
    ctypes.CDLL(None).prctl(15, name.encode())


def end_before_destructors() -> Callable[[int], int]:
    """Ends this process after Python's own exit handlers, before the destructors of C++ libraries. Call it before imports:
    handlers run in the reverse order of their registration. Returns a function that takes, and gives back, the exit code; 1
    until then.

    Of 22 worlds of eight ranks that had finished, three lost one there to "terminate called without an active exception"
    (SIGABRT, no Python frame left), all of them runs that had read Parquet; whose threads it was is not known.
    """
    code = [1]

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # whoever read it has gone
                stream.flush()
        os._exit(code[0])

    def ends_with(found: int) -> int:
        code[0] = found
        return found

    atexit.register(leave)
    return ends_with


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
