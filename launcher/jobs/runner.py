"""`python -m launcher.jobs.runner DIRECTORY`: works a queue off, one job after another, and leaves when nothing waits."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from launcher.exits import AGAIN, DONE
from launcher.jobs.folder import Folder, Submission
from launcher.jobs.queue import LocalQueue

LOOK_SECONDS = 0.2
KILL_SECONDS = 30.0  # between SIGTERM and SIGKILL, as SLURM's KillWait


def work(queue: LocalQueue) -> None:
    """Run jobs until none waits, unless somebody does so already."""
    while True:
        with queue.lock() as ours:
            if not ours:
                return
            queue.take_back()
            while (row := queue.claim()) is not None:
                _run(queue, row)
        # a job that came between the last look and the lock's end would be nobody's
        if not queue.has_work():
            return


def _run(queue: LocalQueue, row: sqlite3.Row) -> None:
    folder = Folder(Path(row["folder"]))
    submission = folder.read()
    say(f"job {row['id']} ({row['name']}) starts")
    process = _start(row, folder)
    ended_by = _watch(queue, row, process, submission)
    code = process.returncode
    state = ended_by or ("COMPLETED" if code == DONE else "FAILED")
    if code == AGAIN and submission.requeue and ended_by != "CANCELLED":
        state = "PENDING"
    queue.ended(row["id"], state, code)
    say(f"job {row['id']} ({row['name']}) ended with code {code}: {state}")


def _start(row: sqlite3.Row, folder: Folder) -> subprocess.Popen:
    own = {"TRIAXIS_JOB": str(row["id"]), "TRIAXIS_RESTART": str(row["restarts"]), "TRIAXIS_PARENT": str(os.getpid())}
    ends = {"TRIAXIS_END_TIME": f"{row['ends']:.3f}"} if row["ends"] else {}
    with open(folder.output, "ab") as log:
        return subprocess.Popen(
            ["bash", str(folder.script)],
            env={**json.loads(row["environment"]), **own, **ends},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_runner,  # this process has one thread
        )


def _die_with_runner() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _watch(queue: LocalQueue, row: sqlite3.Row, process: subprocess.Popen, submission: Submission) -> str:
    """Wait for the end of a job; returns the state that somebody else than the job itself gave it, or an empty text."""
    told, ending, state = False, 0.0, ""
    while process.poll() is None:
        asked = queue.row(row["id"])["asked"]
        late = row["ends"] is not None and time.time() > row["ends"]
        early = row["ends"] is not None and time.time() > row["ends"] - submission.signal_seconds
        if (asked == "end" or late) and not ending:
            ending, state = time.monotonic(), "CANCELLED" if asked == "end" else "TIMEOUT"
            process.send_signal(signal.SIGTERM)
        elif (asked == "save" or early) and not told and not ending:
            told = True
            process.send_signal(signal.SIGUSR2)
        if ending and time.monotonic() - ending > KILL_SECONDS:
            process.kill()
        time.sleep(LOOK_SECONDS)
    return state


def say(text: str) -> None:
    """A line in the runner's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}", flush=True)


if __name__ == "__main__":
    work(LocalQueue(Path(sys.argv[1])))
