"""What a scheduler is asked from outside its jobs: to queue, list, tell and cancel. SLURM here, this machine's in queue.py."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.jobs.config import JobError

ENDED = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
    "OUT_OF_MEMORY",
)
SCRIPT = "job.sh"


@dataclass(frozen=True)
class Job:
    """A job as its scheduler sees it. seconds_left: until its time limit, None without one."""

    id: str
    name: str
    state: str  # in SLURM's words, for the local queue too
    reason: str  # why it waits
    nodes: str
    seconds_left: int | None
    folder: Path | None  # of the submission; None for a job that is not ours

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED


class Scheduler(Protocol):
    """What the commands need of one."""

    def submit(self, script: Path, options: Sequence[str]) -> str:
        """Queue a script; returns the id of its job."""

    def jobs(self) -> list[Job]:
        """The user's jobs that wait, run, or ended a short while ago."""

    def tell(self, job: Job) -> None:
        """Let the ranks of a running job save and end (SIGUSR2)."""

    def cancel(self, ids: Sequence[str]) -> None:
        """End jobs, or take them out of the queue."""


def run_tool(*command: str, timeout: float = 60.0) -> str:
    """The output of one of SLURM's programs. JobError with what it said where it fails."""
    if shutil.which(command[0]) is None:
        raise JobError(
            f"cluster.scheduler=slurm: there is no {command[0]} on this machine; submit from a login node, or set "
            "cluster=local"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]}: no answer from SLURM within {timeout:.0f} s; try again later") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise JobError(f"{' '.join(command[:2])} …: {said}")
    return done.stdout


class Slurm:
    """SLURM by sbatch, squeue and scancel; sacct is not needed."""

    def submit(self, script: Path, options: Sequence[str]) -> str:
        return run_tool("sbatch", "--parsable", *options, str(script)).strip().split(";")[0]

    def jobs(self) -> list[Job]:
        text = run_tool("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%L|%j|%o")
        return [_job(line) for line in text.splitlines() if line.count("|") >= 6]

    def tell(self, job: Job) -> None:
        run_tool("scancel", "--signal=USR2", job.id)

    def cancel(self, ids: Sequence[str]) -> None:
        if ids:
            run_tool("scancel", *ids)


def _job(line: str) -> Job:
    number, state, reason, nodes, left, name, command = (part.strip() for part in line.split("|", 6))
    path = Path(command.split()[0]) if command and command != "(null)" else None
    ours = path if path is not None and path.name == SCRIPT and path.parent.parent.name == "jobs" else None
    return Job(number, name, state, reason, nodes, _seconds(left), ours.parent if ours else None)


def _seconds(text: str) -> int | None:
    """squeue's D-HH:MM:SS, M:SS …; None for UNLIMITED, NOT_SET, INVALID."""
    if not text or not text[0].isdigit():
        return None
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 86_400 + seconds


def scheduler_of(name: str) -> Scheduler:
    """The scheduler by its name in `cluster.scheduler`."""
    if name == "slurm":
        return Slurm()
    from launcher.jobs.queue import LocalQueue

    return LocalQueue.open()
