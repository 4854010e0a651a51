"""A thread in each rank that ends the run when it hangs: who fell silent, or behind, is named once, and all ranks end.

Nothing is written and nobody is asked while all goes well. When an activity has taken too long, each rank leaves a report
and its stacks in `<run>/logs`; one that could do so reads them all, says who is missing, and every rank ends with FAILED.
The directory is one that all nodes see: checkpoints need that too.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from launcher.exits import FAILED
from launcher.failure import Failure, write_word
from launcher.hang import (
    Report,
    count_reports,
    diagnose,
    leave_report,
    read_reports,
    report_path,
    stacks_path,
    tellers,
)
from launcher.life import LifeConfig
from launcher.pace import Pace
from parallel.flight import group_states

TICK = 0.5  # seconds between looks
GATHER_SECONDS = 8.0  # for which the reports of others are waited for
READ_SECONDS = 1e-3  # that the report of one rank may take to be read, of thousands on a busy server
PATIENT_TIMES = 3  # as long as a collective may take: what has no measured length may take, such as a first step
COLLECTIVES = (
    "torch/distributed/",
    "deepspeed/comm/",
    "deepspeed/runtime/pipe/p2p",
)  # where a main thread waits for peers


def call_roll(device: torch.device) -> list[tuple[str, int]]:
    """(host, process id) of every rank."""
    own = (socket.gethostname(), os.getpid())
    if dist.get_world_size() == 1:
        return [own]
    told: list = [None] * dist.get_world_size()
    dist.all_gather_object(told, own)
    return told


class Watchdog:
    """Watches one rank's pace. steps: how many steps it has made. roll: (host, process id) of every rank."""

    def __init__(
        self,
        directory: Path,
        pace: Pace,
        config: LifeConfig,
        timeout: float,
        rank: int,
        roll: list[tuple[str, int]],
        steps: Callable[[], int],
    ) -> None:
        self._directory, self._pace, self._config, self._timeout = directory, pace, config, timeout
        self._rank, self._roll, self._steps = rank, roll, steps
        self._attempt = f"{roll[0][1]:x}"  # the process of rank 0 tells this attempt from those before
        self._main = threading.main_thread().ident
        self._over = threading.Event()
        for path in (report_path(directory, rank, self._attempt), stacks_path(directory, rank)):
            path.unlink(missing_ok=True)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join(2 * TICK)

    def _limit(self) -> float:
        """Seconds that what the rank does may take."""
        own = self._config.hang_seconds or self._pace.common_limit
        return own if self._pace.quick and own else PATIENT_TIMES * self._timeout

    def _watch(self) -> None:
        beats, spent, looked = -1, 0.0, time.monotonic()
        while not self._over.wait(TICK):
            now = time.monotonic()
            # a process that was stopped has not hung for as long: the watchdog was stopped with it
            spent, looked = spent + min(now - looked, 2 * TICK), now
            if self._pace.beats != beats:
                beats, spent = self._pace.beats, 0.0
            elif spent > self._limit():
                self._break(spent)

    def _break(self, seconds: float) -> None:
        """Tell, and end this process. Nothing here may keep it from its end."""
        try:
            self._tell(seconds)
        finally:
            os._exit(FAILED)

    def _tell(self, seconds: float) -> None:
        with open(stacks_path(self._directory, self._rank), "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        own = self._report(seconds)
        leave_report(self._directory, own, self._attempt)
        word = f"{own.doing} for {seconds:.0f} s: ended with a run that hung"
        write_word(self._directory, Failure(self._rank, time.time(), word, "", own.host, FAILED, echo=True))
        self._gather()
        may_tell = tellers(self._roll)
        reports = read_reports(self._directory, self._attempt, len(self._roll)) if self._rank in may_tell else {}
        if self._rank != next((rank for rank in may_tell if rank in reports), None):
            # the teller ends first: what it says is then there to be read, and nobody ends it while it reads
            time.sleep(3 * TICK + READ_SECONDS * len(self._roll))
            return
        found = diagnose(reports, self._roll)
        source = "life.hang_seconds" if self._config.hang_seconds else "ten times the slowest of the last steps"
        stacks = f"Stacks: {self._directory / 'logs'}/hang_rank_*.txt (limit {self._limit():.0f} s, {source})"
        message = f"the run hung: {found.message}. {stacks}"
        first = found.missing[0]
        write_word(
            self._directory, Failure(first, time.time(), message, "", self._roll[first][0], FAILED, complete=True)
        )
        sys.stderr.write(f"watchdog: {message}\n")
        sys.stderr.flush()

    def _report(self, seconds: float) -> Report:
        try:
            groups = tuple(group_states())
        except Exception:  # whatever a recorder that is not ours says: the stacks are worth having without it
            groups = ()
        frame = sys._current_frames().get(self._main or 0)
        at, inside = stands(frame)
        host, pid = self._roll[self._rank]
        waits = inside or any(group.waits for group in groups)
        return Report(self._rank, host, pid, self._steps(), self._pace.doing, seconds, at, waits, groups)

    def _gather(self) -> None:
        """Wait for the reports of all ranks, or for a while."""
        end = time.monotonic() + GATHER_SECONDS
        if self._rank not in tellers(self._roll):
            time.sleep(GATHER_SECONDS)
            return
        while count_reports(self._directory, self._attempt) < len(self._roll) and time.monotonic() < end:
            time.sleep(TICK)


def stands(frame: FrameType | None) -> tuple[str, bool]:
    """Where a stack stands, by its innermost frame of our own code, and whether it waits for peers."""
    house = str(Path(__file__).resolve().parent.parent) + os.sep
    innermost, own, waits = "", "", False
    while frame is not None:
        code = frame.f_code
        text = f"{code.co_filename.removeprefix(house)}:{frame.f_lineno} {code.co_name}"
        innermost = innermost or text
        waits |= not own and any(part in code.co_filename for part in COLLECTIVES)
        ours = code.co_filename.startswith(house) and "site-packages" not in code.co_filename  # of a .venv in the house
        if not own and ours:
            own = text
        frame = frame.f_back
    return own or innermost or "nowhere", waits
