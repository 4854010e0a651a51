"""`triaxis jobs [NAME]`: what runs, how far it is, why each attempt ended; from the scheduler and from the run's files."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from launcher.attempts import Attempt, read_attempts, running_attempt
from launcher.callbacks.units import ABSENT, count, duration
from launcher.exits import AGAIN, DONE, NEVER
from launcher.jobs.config import JobError
from launcher.jobs.find import Found, find_run, find_runs
from launcher.terminal import open_console

HELP = """triaxis jobs [NAME]

All submitted runs below runs/, and those elsewhere whose jobs wait or run; with NAME, a run, its directory or a job's id, every
attempt of one and why it ended."""
TAIL = 1 << 16  # bytes at the end of metrics.jsonl in which the newest step stands
STYLES = {"running": "green", "waiting": "yellow", "finished": "bold green", "failed": "red", "cancelled": "dim"}
OUTCOMES = {DONE: "done", AGAIN: "again", NEVER: "never"}
console = open_console()


def jobs_command(arguments: list[str]) -> int:
    """`triaxis jobs …`."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        raise JobError("jobs: takes one run at most, such as triaxis jobs first")
    found = [find_run(arguments[0])] if arguments else find_runs()
    if not found:
        console.print("no run was submitted from here; `triaxis submit` does")
        return 0
    console.print(overview(found))
    if arguments:
        console.print()
        console.print(attempts_table(found[0]))
    return 0


def overview(found: list[Found]) -> Table:
    """A row for each run."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("run", "job", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "loss", "tokens/s", "run left", "job left", "attempts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for one in found:
        table.add_row(*row_of(one))
    return table


def row_of(found: Found) -> list[Text | str]:
    """State, progress and reason of one run."""
    state, why = state_of(found)
    running = state == "running"
    step = newest_step(found.run)
    made = step["step"] if step else 0
    speed = step["tokens_per_second"] if step and running else None
    left = (found.submission.total_tokens - step["tokens"]) / speed if step and speed else None
    alive = found.alive
    limit = alive[0].seconds_left if running and alive else None
    attempts = len(read_attempts(found.run)) + (running_attempt(found.run) is not None)
    ids = ",".join(job.id for job in alive) or ",".join(found.folder.links)
    return [
        found.submission.name,
        ids if len(ids) < 24 else f"{ids[:22]}…",
        Text(state, style=STYLES.get(state, "")),
        f"{made:,}/{found.submission.total_steps:,}",
        f"{step['loss']:.4f}" if step and step["loss"] is not None else ABSENT,
        count(speed),
        duration(left),
        duration(limit),
        str(attempts),
        why,
    ]


def state_of(found: Found) -> tuple[str, str]:
    """One word, and the reason for it."""
    stopped, alive = found.folder.stopped, found.alive
    attempts = read_attempts(found.run)
    last = attempts[-1].reason if attempts else ""
    if alive:
        job = alive[0]
        if job.state == "PENDING":
            return "waiting", f"{job.reason}{f'; before: {last}' if last else ''}"
        word = "ending" if stopped and stopped["reason"] == "cancelled" else "running"
        return word, f"before: {last}" if last and word == "running" else ""
    if stopped is not None:
        words = {"finished": "finished", "cancelled": "cancelled"}
        state = words.get(stopped["reason"], "failed")
        return state, stopped["reason"] if state == "failed" else last if state == "cancelled" else ""
    ended = [job for job in found.jobs if not job.alive]
    how = ended[-1].state.lower().replace("_", " ") if ended else "gone from the queue"
    return "ended", f"job {how}" + (f"; {last}" if last else "")


def attempts_table(found: Found) -> Table:
    """A row for each attempt."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("attempt", "job", "nodes", "began", "took", "steps", "code", "why it ended"):
        table.add_column(name, overflow="fold", no_wrap=name not in ("nodes", "why it ended"))
    running = running_attempt(found.run)
    for attempt in [*read_attempts(found.run), *([running] if running else [])]:
        table.add_row(*_attempt_row(attempt))
    return table


def _attempt_row(attempt: Attempt) -> list[str]:
    took = (attempt.ended or time.time()) - attempt.started
    code = ABSENT if attempt.code is None else f"{attempt.code} {OUTCOMES.get(attempt.code, 'failed')}"
    where = ",".join(attempt.nodes) if len(attempt.nodes) < 9 else f"{len(attempt.nodes)}: {attempt.nodes[0]} …"
    return [
        str(attempt.attempt),
        attempt.job or ABSENT,
        where or ABSENT,
        time.strftime("%m-%d %H:%M:%S", time.localtime(attempt.started)),
        duration(took),
        f"{attempt.first_step:,} to {attempt.last_step:,}" if attempt.ended else f"from {attempt.first_step:,}",
        code,
        attempt.reason or "runs",
    ]


def newest_step(run: Path) -> dict[str, Any] | None:
    """The last `step` line of metrics.jsonl."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "step":
            return record
    return None
