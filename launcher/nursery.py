"""Ranks without GPUs as forks of one process that imports everything: torch and the engines are imported once for all ranks of
a node, which share that memory too. (CUDA does not outlive a fork: ranks with GPUs are processes of their own.)

The launcher runs `python -m launcher.nursery RUN PIPE` (Nursery), which imports, forks WORLD_SIZE ranks and tells by the pipe
who was born and how each ended. A signal that comes before the forks ends it, and with it ranks that had not begun; one
that comes between them and the launcher's knowledge of them is passed on.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from launcher.failure import log_path
from launcher.spawn import start_module

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Fork:
    """A rank as its launcher sees it, with the part of subprocess.Popen that the launcher needs."""

    def __init__(self, nursery: Nursery) -> None:
        self._nursery = nursery
        self.pid: int | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """How it ended; negative for a signal, None while it lives."""
        self._nursery.listen()
        return self.returncode

    def wait(self) -> int:
        """Its end, when that has come."""
        while self.returncode is None:
            self._nursery.listen(wait=True)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal it, or the nursery while it is not born."""
        self._nursery.listen()
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid or self._nursery.process.pid, number)

    def kill(self) -> None:
        """End it now; where it is not born it never will be."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The process that ranks are born from, seen from the launcher. environment: what ranks share."""

    def __init__(self, directory: Path, world_size: int, environment: Mapping[str, str]) -> None:
        self.ranks = [Fork(self) for _ in range(world_size)]
        self._told = b""
        self._pipe, theirs = os.pipe()
        try:
            self.process = start_module(
                "launcher.nursery",
                str(directory),
                str(theirs),
                log=log_path(directory, 0),
                variables=environment,
                terminal=True,
                pipes=(theirs,),
            )
        finally:
            os.close(theirs)

    def listen(self, *, wait: bool = False) -> None:
        """Read what the nursery has told; where it has died, so have its ranks."""
        while self._pipe >= 0:
            os.set_blocking(self._pipe, wait)
            try:
                found = os.read(self._pipe, 4096)
            except BlockingIOError:
                return
            except OSError:
                if self._pipe < 0:  # a signal's handler has listened to the end
                    return
                raise
            *lines, self._told = (self._told + found).split(b"\n")
            for line in lines:
                what, rank, number = line.split()
                setattr(self.ranks[int(rank)], "pid" if what == b"born" else "returncode", int(number))
            if not found:
                self._bury()
            elif wait:
                return

    def close(self) -> None:
        """Wait for its end, which comes with that of the last rank."""
        while self._pipe >= 0:
            self.listen(wait=True)

    def _bury(self) -> None:
        """Its end of the pipe is closed: it has ended, and the kernel ends ranks whose parent has."""
        pipe, self._pipe = self._pipe, -1
        if pipe < 0:  # a signal's handler came in between
            return
        os.close(pipe)
        code = self.process.wait()
        for rank in self.ranks:
            if rank.returncode is None:
                rank.returncode = code or 1


# In the nursery -------------------------------------------------------------------------------------------------------


def main(directory: Path, pipe: int) -> int:
    """Import what ranks need, fork them, and wait for them; in a rank, its whole life. Returns the exit code."""
    from launcher.marks import mark
    from launcher.workers import die_with_parent, end_before_destructors, name_process
    from parallel.flight import record_flights

    die_with_parent()
    ends_with = end_before_destructors()
    record_flights()
    mark("start of ranks")
    name_process("nursery")
    _import_all()
    gc.collect()
    gc.freeze()  # what was imported is shared with the ranks as long as no collection writes to it
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # none may be lost between a fork and the first handler in it
    children: dict[int, int] = {}
    for rank in range(int(os.environ["WORLD_SIZE"])):
        pid = os.fork()
        if pid == 0:
            os.close(pipe)
            return ends_with(_live(directory, rank))
        children[pid] = rank
        os.write(pipe, b"born %d %d\n" % (rank, pid))

    def pass_on(number: int, frame: object) -> None:
        for pid in children:
            os.kill(pid, number)

    for number in STOPS:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    while children:
        pid, status = os.waitpid(-1, 0)
        if pid in children:
            os.write(pipe, b"ended %d %d\n" % (children.pop(pid), os.waitstatus_to_exitcode(status)))
    return ends_with(0)


def _import_all() -> None:
    import launcher.train  # noqa: F401
    from launcher.compose import load_recipe
    from parallel.engines.select import choose_engine, engine_class

    recipe, world_size = load_recipe(Path(os.environ["TRIAXIS_RECIPE"])), int(os.environ["WORLD_SIZE"])
    engine_class(choose_engine(recipe.parallel, world_size)[0], world_size)


def _live(directory: Path, rank: int) -> int:
    """A rank's life, as that of `python -m launcher.train`."""
    from launcher.exits import said_by
    from launcher.train import main as train
    from launcher.workers import StopRequest, die_with_parent, name_process

    parent = os.getppid()
    os.setsid()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), TRIAXIS_PARENT=str(parent))
    if rank:  # rank 0 keeps the terminal, and has its log as standard error already
        log = os.open(log_path(directory, rank), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    die_with_parent()
    name_process(f"rank_{rank}")
    stop = StopRequest()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    return said_by(rank, train([], stop))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
