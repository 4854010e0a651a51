"""Parts given to processes. Each part is one task; which process does it, and when, has no influence on the result.

Processes of their own and not `multiprocessing`: that would import the caller's main module again, and a process that
is busy with a part must notice that its builder was killed, so that nothing works on behind the back of the next one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from data.build.clean import clean_part
from data.build.encode import encode_part
from data.build.job import Job, Report
from data.build.plan import Part
from data.config import DataError

IN_PROCESS_BYTES = 8 << 20
"""Less than this is done by the builder itself: starting processes takes a good part of a second."""

ENCODE = -1
"""The stage after all cleaning stages: tokens and shards."""


class Workers:
    """Does stages: in this process, or in processes that are started when they are worth it and live until `close`.

    lock: a descriptor that the processes hold while they live.
    """

    def __init__(self, job: Job, count: int, lock: int) -> None:
        self._job, self._count, self._lock = job, count, lock
        self._team: _Team | None = None

    def run(self, stage: int, parts: Sequence[Part], report: Report) -> None:
        """Does a stage for all given parts."""
        if self._count > 1 and len(parts) > 1 and sum(part.size for part in parts) >= IN_PROCESS_BYTES:
            if self._team is None:
                self._team = _Team(self._job, min(self._count, len(parts)), self._lock)
            self._team.run([(stage, part) for part in parts], report)
            return
        for part in parts:
            _do(self._job, stage, part, report)

    def close(self) -> None:
        """Ends the processes, whatever they are at."""
        if self._team is not None:
            self._team.close()


def _do(job: Job, stage: int, part: Part, report: Report) -> None:
    if stage == ENCODE:
        encode_part(job, part, report)
    else:
        clean_part(job, stage, part, report)


class _Team:
    """Processes that do tasks."""

    def __init__(self, job: Job, size: int, lock: int) -> None:
        self._members = [_start(lock) for _ in range(size)]
        for _, link in self._members:
            self._send(link, job)

    def run(self, tasks: list[tuple[int, Part]], report: Report) -> None:
        """Gives out the tasks in order; raises what one of them raised."""
        waiting, idle, busy = list(reversed(tasks)), [link for _, link in self._members], set[Connection]()
        while waiting or busy:
            while idle and waiting:
                busy.add(idle[-1])
                self._send(idle.pop(), waiting.pop())
            for link in wait(list(busy), timeout=5):
                assert isinstance(link, Connection)
                try:
                    kind, value = link.recv()
                except (EOFError, OSError):
                    raise DataError(self._died(link)) from None
                if kind == "error":
                    raise value
                report(*value)
                if kind == "done":
                    busy.remove(link)
                    idle.append(link)
            report(0, 0)

    def _send(self, link: Connection, message: Any) -> None:
        try:
            link.send(message)
        except OSError:
            raise DataError(self._died(link)) from None

    def _died(self, link: Connection) -> str:
        code = next(process.wait() for process, own in self._members if own is link)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return (
            f"a process of the build {how} (out of memory?); what is finished is kept: build again, it goes on, and take "
            "fewer processes (corpus.workers) if memory was short"
        )

    def close(self) -> None:
        for process, link in self._members:
            link.close()
            process.terminate()
        for process, _ in self._members:
            process.wait()


def _start(lock: int) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    code = f"from data.build.work import serve; serve({theirs.fileno()}, {os.getpid()})"
    # One thread each: there are as many processes as cores.
    single = dict.fromkeys(("RAYON_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **single}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno(), lock], env=environment
    )
    theirs.close()
    return process, ours


def serve(descriptor: int, builder: int) -> None:
    """What a process of a team does, until its builder is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the builder has it too, and ends this one
    link = Connection(descriptor)

    def report(size: int, tokens: int) -> None:
        if os.getppid() != builder:
            os._exit(1)
        link.send(("progress", (size, tokens)))

    try:
        job: Job = link.recv()
        while True:
            stage, part = link.recv()
            link.send(_outcome(lambda stage=stage, part=part: _do(job, stage, part, report)))  # type: ignore[misc]
    except (EOFError, OSError):
        return


def _outcome(task: Callable[[], None]) -> tuple[str, Any]:
    """("done", nothing to report) or ("error", an exception that can be sent)."""
    try:
        task()
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(str(error))
        error.add_note("in a process of the build:\n" + traceback.format_exc())
        return "error", error
    return "done", (0, 0)
