"""Runs that have jobs, and the jobs that they have: what `triaxis jobs`, `logs` and `cancel` begin with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.jobs.config import JobError
from launcher.jobs.folder import Folder, Submission, folders
from launcher.jobs.queue import FILE_NAME, LocalQueue, queue_directory
from launcher.jobs.scheduler import Job, Scheduler, Slurm, scheduler_of

RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """The newest submission of a run, and its jobs in order of their ids."""

    run: Path
    folder: Folder
    submission: Submission
    jobs: list[Job]

    @property
    def alive(self) -> list[Job]:
        """Jobs that wait or run, those that run first."""
        return sorted((job for job in self.jobs if job.alive), key=lambda job: job.state == "PENDING")

    @property
    def scheduler(self) -> Scheduler:
        """Who has its jobs."""
        return scheduler_of(self.submission.scheduler)


class AllJobs:
    """What every scheduler at hand knows of: SLURM where its programs are, and this machine's queue."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.trouble: JobError | None = None  # of a SLURM that does not answer, which matters to its own jobs alone
        if shutil.which("squeue"):
            try:
                self.jobs += Slurm().jobs()
            except JobError as error:
                self.trouble = error
        if (queue_directory() / FILE_NAME).exists():
            self.jobs += LocalQueue.open().jobs()

    def found(self, run: Path) -> Found | None:
        """The newest submission of a run; None where there is none."""
        submissions = folders(run)
        if not submissions:
            return None
        newest, submission = submissions[-1], submissions[-1].read()
        if self.trouble is not None and submission.scheduler == "slurm" and newest.stopped is None:
            raise self.trouble
        return Found(run, newest, submission, [job for job in self.jobs if job.folder == newest.path])


def find_runs(directory: Path = RUNS) -> list[Found]:
    """Every run below a directory that was ever submitted, and those elsewhere whose jobs wait or run; newest last."""
    known = AllJobs()
    places = {path.parent.absolute() for path in directory.glob("*/jobs")}
    places |= {job.folder.parent.parent for job in known.jobs if job.folder is not None and job.alive}
    found = [one for place in places if (one := known.found(place)) is not None]
    return sorted(found, key=lambda one: one.submission.submitted)


def find_run(word: str) -> Found:
    """A run by its directory, its name or the id of one of its jobs."""
    known = AllJobs()
    for place in (RUNS / word, Path(word)):
        if (one := known.found(place.absolute())) is not None:
            return one
    for job in known.jobs:
        if word in (job.id, job.id.split("_")[0], job.name) and job.folder is not None:
            one = known.found(job.folder.parent.parent)
            if one is not None:
                return one
    names = ", ".join(one.submission.name for one in find_runs()) or "none"
    raise JobError(f"{word}: no run of this name was submitted from here; there are: {names}")
