"""Pools of worker processes over gloo that stay for the whole test session and are sent one job after another.

Importing torch, megatron-core and deepspeed costs seconds a process, so a server process imports them once and every
rank is forked from it (it has one thread then, so forking is safe). Each rank joins its world once and then serves
jobs: the parent sends the name of a module-level function and its arguments to every rank and collects what each
returns.

    pools = Pools()
    results = pools.run(4, jobs.train, case=case)        # results[rank]

A rank that raises or dies discards its whole pool, since its peers may hang in a collective that will never be
complete; the error shown is that of the rank that failed first. No process outlives the session, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import faulthandler
import gc
import importlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PRELOAD = ["torch.distributed", "parallel.engines.deepspeed", "parallel.engines.torch"]
ROOT = Path(__file__).resolve().parents[2]
SERVER_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONWARNINGS": "ignore",
}
COLLECTIVE_SECONDS = 120  # a collective that waits longer has lost a peer
GRACE_SECONDS = 0.5  # in which other ranks may tell that they failed earlier
LOG_LINES = 40


class RankError(AssertionError):
    """A rank raised, died or hung; the message is that of the first one."""


@dataclass(frozen=True)
class Answer:
    """What a rank sends back. when: seconds since the epoch, to tell the first failure from its consequences."""

    rank: int
    when: float
    failed: bool
    value: Any


class Pool:
    """The ranks of one world size."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.directory = Path(tempfile.mkdtemp(prefix=f"triaxis-pool-{size}-"))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self.processes = []
        self.connections: list[Connection] = []
        with _environment(SERVER_ENVIRONMENT):
            for rank in range(size):
                ours, theirs = context.Pipe()
                process = context.Process(
                    target=_serve, args=(theirs, rank, size, str(self.directory)), daemon=True, name=f"rank {rank}"
                )
                process.start()
                theirs.close()
                self.processes.append(process)
                self.connections.append(ours)

    def run(self, job: Callable[..., Any], timeout: float, arguments: dict[str, Any]) -> list[Any]:
        """Run a module-level function on every rank; its results in the order of ranks."""
        assert "." not in job.__qualname__ and not job.__qualname__.startswith("<"), f"{job}: not at module level"
        message = pickle.dumps((job.__module__, job.__qualname__, arguments))
        for connection in self.connections:
            with contextlib.suppress(OSError):  # a dead rank is told of below
                connection.send_bytes(message)
        return [answer.value for answer in self._collect(job.__qualname__, timeout)]

    def _collect(self, job: str, timeout: float) -> list[Answer]:
        ranks = {connection: rank for rank, connection in enumerate(self.connections)}
        answers: dict[int, Answer] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < self.size:
            ready = wait([c for c, rank in ranks.items() if rank not in answers], max(0.0, deadline - time.monotonic()))
            for connection in ready:
                assert isinstance(connection, Connection)
                answers[ranks[connection]] = self._receive(connection, ranks[connection])
            failed = [answer for answer in answers.values() if answer.failed]
            if failed and not ready:
                break
            if failed:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            elif not ready:
                raise RankError(self._describe_hang(job, timeout, sorted(set(range(self.size)) - set(answers))))
        failed = [answer for answer in answers.values() if answer.failed]
        if failed:
            first = min(failed, key=lambda answer: answer.when)
            raise RankError(
                f"{job}: rank {first.rank} of {self.size} failed first: {first.value}{self._log(first.rank)}"
            )
        return [answers[rank] for rank in range(self.size)]

    def _receive(self, connection: Connection, rank: int) -> Answer:
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            self.processes[rank].join(5)
            code = self.processes[rank].exitcode
            how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
            # it died without a word, before the others can have noticed
            return Answer(rank, time.time() - 3600, True, f"the process ended ({how})")

    def _describe_hang(self, job: str, timeout: float, waiting: list[int]) -> str:
        for rank in waiting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.processes[rank].pid or 0, signal.SIGUSR1)  # its faulthandler writes where it stands
        time.sleep(1.0)
        stacks = "".join(self._log(rank) for rank in waiting)
        return f"{job}: ranks {waiting} of {self.size} gave no answer in {timeout:.0f} s{stacks}"

    def _log(self, rank: int) -> str:
        text = log_path(self.directory, rank).read_text(errors="replace") if self.directory.exists() else ""
        lines = text.splitlines()[-LOG_LINES:]
        return "\n".join(["", f"--- output of rank {rank}", *lines]) if lines else ""

    def close(self) -> None:
        """End every rank at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for connection in self.connections:
            connection.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def in_a_process(job: Callable[..., Any], timeout: float = 120.0, **arguments: Any) -> Any:
    """The result of a module-level function in a process of its own, which has what ranks import and no process group."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with _environment(SERVER_ENVIRONMENT), context.Pool(1) as pool:
        return pool.apply_async(job, kwds=arguments).get(timeout)


class Pools:
    """One pool for each world size, started when first asked for and again after a failure."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def run(self, world_size: int, job: Callable[..., Any], *, timeout: float = 180.0, **arguments: Any) -> list[Any]:
        """`job(**arguments)` on every rank of a world; results in the order of ranks. Raises RankError."""
        pool = self._pools.get(world_size)
        if pool is None:
            pool = self._pools[world_size] = Pool(world_size)
        try:
            return pool.run(job, timeout, arguments)
        except BaseException:  # an interrupt too: the ranks are in the middle of something
            self.discard(world_size)
            raise

    def discard(self, world_size: int) -> None:
        """End the pool of a world size, if there is one."""
        pool = self._pools.pop(world_size, None)
        if pool is not None:
            pool.close()

    def close(self) -> None:
        """End every pool."""
        for size in list(self._pools):
            self.discard(size)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while: what the server inherits when it starts."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


# In a rank ------------------------------------------------------------------------------------------------------------


def log_path(directory: Path, rank: int) -> Path:
    """Where a rank's output goes."""
    return directory / f"rank_{rank}.log"


def _serve(connection: Connection, rank: int, size: int, directory: str) -> None:
    """A rank's life: join the world, then do jobs until the parent closes the pipe."""
    _end_with_parents()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    # Ranks outnumber cores. gloo's loop thread spins in epoll while a thread that holds its lock is off the core, where it was
    # put by whom it woke: without preemption at wake-up a collective costs a third to a half less of a core's time.
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _redirect_output(log_path(Path(directory), rank))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size))

    import torch
    import torch.distributed as dist

    from parallel.gloo import share_device

    share_device()  # of the world too, which here is there before the mesh
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{directory}/store",  # no port that another process could have taken
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=COLLECTIVE_SECONDS),
    )
    gc.freeze()  # what the server imported is not garbage: collecting between jobs then costs nothing
    while True:
        try:
            module, name, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            os._exit(0)
        connection.send_bytes(pickle.dumps(_answer(rank, module, name, arguments)))
        gc.collect()


def _answer(rank: int, module: str, name: str, arguments: dict[str, Any]) -> Answer:
    try:
        return Answer(rank, time.time(), False, getattr(importlib.import_module(module), name)(**arguments))
    except BaseException:
        return Answer(rank, time.time(), True, traceback.format_exc())


def _end_with_parents() -> None:
    """End at once when the server dies (prctl) or pytest does.

    The server itself lives as long as any rank, so it cannot tell ranks of pytest's death: a thread waits for that. It
    gets its turn in a hung collective too, where the interpreter's lock is free.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_end() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_for_end, daemon=True).start()


def _redirect_output(path: Path) -> None:
    """Send stdout and stderr to a file, which a failure shows the end of; SIGUSR1 writes every thread's stack there."""
    file = open(path, "wb", buffering=0)  # noqa: SIM115 (open as long as the process lives)
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
