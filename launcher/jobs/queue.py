"""The queue of this machine: jobs in order, one at a time, in a file; a runner process works it off when the shell is gone.

`triaxis submit cluster=local` enters a job and starts a runner where none runs. The table stands in $TRIAXIS_QUEUE, else in
`~/.local/state/triaxis/queue`. States, requeueing, time limits and signals are SLURM's, so that everything else is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.jobs.config import JobError
from launcher.jobs.folder import Folder
from launcher.jobs.scheduler import Job
from launcher.spawn import start_module

FILE_NAME, LOCK_NAME, LOG_NAME = "queue.db", "runner.lock", "runner.log"
SHOWN = 200  # newest jobs that are told of
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, folder TEXT NOT NULL, environment TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'PENDING', asked TEXT NOT NULL DEFAULT '', restarts INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL, started REAL, ends REAL, ended REAL, code INTEGER);
"""


def queue_directory() -> Path:
    """Where the queue of this user on this machine stands."""
    if named := os.environ.get("TRIAXIS_QUEUE"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser()
    return Path(state) / "triaxis" / "queue"


class LocalQueue:
    """The table, and whoever works it off. A `Scheduler`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # environments stand in it
            self.base = sqlite3.connect(directory / FILE_NAME, timeout=30, isolation_level=None)
            self.base.row_factory = sqlite3.Row
            self.base.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise JobError(
                f"TRIAXIS_QUEUE={directory}: the queue cannot be opened there ({error}); name another"
            ) from error

    @classmethod
    def open(cls) -> LocalQueue:
        """This user's queue; one that holds work and lost its runner, as by a reboot, gets another."""
        queue = cls(queue_directory())
        if queue.has_work():
            queue.ensure_runner()
        return queue

    # As a scheduler

    def submit(self, script: Path, options: Sequence[str]) -> str:
        """Enter a job and see to it that somebody works; `options` of a chain say no more than the order does."""
        folder = Folder(script.parent)
        row = (folder.read().name, str(folder.path), json.dumps(dict(os.environ)), time.time())
        found = self.base.execute("INSERT INTO jobs (name, folder, environment, submitted) VALUES (?, ?, ?, ?)", row)
        self.ensure_runner()
        return str(found.lastrowid)

    def jobs(self) -> list[Job]:
        rows = self.base.execute("SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (SHOWN,)).fetchall()
        return [_job(row) for row in reversed(rows)]

    def tell(self, job: Job) -> None:
        self._ask([job.id], "save", "AND asked = ''")

    def cancel(self, ids: Sequence[str]) -> None:
        self._ask(ids, "end")
        with self.writing() as base:
            marks = ",".join("?" * len(ids))
            base.execute(
                f"UPDATE jobs SET state = 'CANCELLED', ended = ? WHERE state = 'PENDING' AND id IN ({marks})",
                (time.time(), *ids),
            )

    def _ask(self, ids: Sequence[str], what: str, more: str = "") -> None:
        marks = ",".join("?" * len(ids))
        self.base.execute(f"UPDATE jobs SET asked = ? WHERE id IN ({marks}) {more}", (what, *ids))

    # For the runner

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that begins as a writer, so that what is read in it stays true until it is written."""
        self.base.execute("BEGIN IMMEDIATE")
        try:
            yield self.base
        except BaseException:
            self.base.execute("ROLLBACK")
            raise
        self.base.execute("COMMIT")

    def has_work(self) -> bool:
        """Whether a job waits, or claims to run."""
        return self.base.execute("SELECT 1 FROM jobs WHERE state IN ('PENDING', 'RUNNING')").fetchone() is not None

    def claim(self) -> sqlite3.Row | None:
        """The next job, which runs from now on."""
        with self.writing() as base:
            row = base.execute("SELECT id FROM jobs WHERE state = 'PENDING' ORDER BY id LIMIT 1").fetchone()
            if row is None:
                return None
            now, seconds = time.time(), Folder(Path(self.row(row["id"])["folder"])).read().seconds
            base.execute(
                "UPDATE jobs SET state = 'RUNNING', asked = '', started = ?, ends = ?, ended = NULL WHERE id = ?",
                (now, now + seconds if seconds else None, row["id"]),
            )
            return self.row(row["id"])

    def row(self, job: int) -> sqlite3.Row:
        """A job as it stands in the table."""
        return self.base.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()

    def ended(self, job: int, state: str, code: int) -> None:
        """A job has ended; PENDING: it shall run again, before those that came after it."""
        again = state == "PENDING"
        self.base.execute(
            "UPDATE jobs SET state = ?, code = ?, ended = ?, restarts = restarts + ? WHERE id = ?",
            (state, code, time.time(), int(again), job),
        )

    def take_back(self) -> None:
        """Jobs whose runner died with them: a job has died with its runner, and waits again."""
        self.base.execute("UPDATE jobs SET state = 'PENDING', restarts = restarts + 1 WHERE state = 'RUNNING'")

    @contextlib.contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process is the runner now; the kernel takes the lock back from one that dies."""
        with open(self.directory / LOCK_NAME, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            yield True

    def ensure_runner(self) -> None:
        """Start a runner, which leaves at once where one runs already."""
        start_module(
            "launcher.jobs.runner", str(self.directory), log=self.directory / LOG_NAME
        )  # it outlives the shell


def _job(row: sqlite3.Row) -> Job:
    running = row["state"] == "RUNNING"
    left = int(row["ends"] - time.time()) if running and row["ends"] else None
    reason = "in order" if row["state"] == "PENDING" else ""
    return Job(str(row["id"]), row["name"], row["state"], reason, "", left, Path(row["folder"]))
