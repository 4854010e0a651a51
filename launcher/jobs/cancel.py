"""`triaxis cancel NAME [--now]`: the jobs of a run end, by default once its ranks have saved."""

from __future__ import annotations

import time

from launcher.exits import FAILED
from launcher.jobs.config import JobError
from launcher.jobs.find import Found, find_run
from launcher.terminal import open_console

HELP = """triaxis cancel NAME [--now] [--wait]

Ends the jobs of a run: ranks are told to save, and nothing is queued again. NAME: a run, its directory, or a job's id.
  --now    at once, back to the newest checkpoint
  --wait   return when the jobs have ended"""
console = open_console(soft_wrap=True)


def cancel_command(arguments: list[str]) -> int:
    """`triaxis cancel …`."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0 if arguments else 1
    words = [word for word in arguments if word not in ("--now", "--wait")]
    if len(words) != 1 or words[0].startswith("-"):
        raise JobError("cancel: takes one run, such as triaxis cancel first")
    found = find_run(words[0])
    cancel(found, now="--now" in arguments)
    while "--wait" in arguments and find_run(str(found.run)).alive:
        time.sleep(1)
    return 0


def cancel(found: Found, *, now: bool) -> None:
    """Take waiting jobs out of the queue and let running ones save, or end them."""
    name = found.submission.name
    if not found.alive:
        console.print(f"{name}: no job of it waits or runs")
        return
    found.folder.stop(FAILED, "cancelled")  # first: no job of it goes back into the queue from here
    waiting = [job for job in found.alive if job.state == "PENDING"]
    running = [job for job in found.alive if job.state != "PENDING"]
    scheduler = found.scheduler
    scheduler.cancel([job.id for job in (found.alive if now else waiting)])
    for job in [] if now else running:
        scheduler.tell(job)
    ids = ", ".join(job.id for job in running)
    if not running:
        console.print(f"{name}: taken out of the queue (job {', '.join(job.id for job in waiting)})")
    elif now:
        console.print(f"{name}: job {ids} is ended; its newest checkpoint stays")
    else:
        console.print(f"{name}: job {ids} saves and ends; `triaxis jobs {name}` shows it")
