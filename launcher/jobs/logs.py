"""`triaxis logs NAME [-f] [--rank N] [--job]`: what a run printed, wherever it runs and however often it was started."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

from launcher.jobs.config import JobError
from launcher.jobs.find import Found, find_run
from launcher.workers import log_path

HELP = """triaxis logs NAME [-f] [--rank N] [--job]

What rank 0 of a run printed, and what its job's controller said of each attempt. NAME: a run, its directory, or a job's id.
  -f, --follow   go on until the jobs of the run have ended
  --rank N       of rank N
  --job          of the controller alone"""
LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0
TAIL_BYTES = 64 << 10  # of each file, where nothing is followed yet


def logs_command(arguments: list[str]) -> int:
    """`triaxis logs …`."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0 if arguments else 1
    follow, job, rank, words = False, False, 0, list(arguments)
    if "--rank" in words:
        at = words.index("--rank")
        value = words[at + 1] if at + 1 < len(words) else ""
        if not value.isdigit():
            raise JobError(f"--rank {value}: needs the number of a rank, such as --rank 3")
        rank = int(value)
        del words[at : at + 2]
    for flag in ("-f", "--follow", "--job"):
        if flag in words:
            words.remove(flag)
            follow, job = follow or flag != "--job", job or flag == "--job"
    if len(words) != 1:
        raise JobError("logs: takes one run, such as triaxis logs first -f")
    found = find_run(words[0])
    if rank and rank >= found.submission.nodes * found.submission.tasks:
        raise JobError(f"--rank {rank}: the run has ranks 0 to {found.submission.nodes * found.submission.tasks - 1}")
    files = [found.folder.output] if job else [found.folder.output, log_path(found.run, rank)]
    _print(files, found, follow)
    return 0


def _print(files: list[Path], found: Found, follow: bool) -> None:
    """Both files as they grow, each from its last part on."""
    places: dict[Path, int] = {}
    asked = 0.0
    while True:
        for path in files:
            places[path] = _more(path, places.get(path), sys.stdout)
        sys.stdout.flush()
        if not follow:
            return
        if time.monotonic() - asked > ASK_SECONDS:
            asked = time.monotonic()
            if not find_run(str(found.run)).alive:
                follow = False  # once more, for what came since
                continue
        time.sleep(LOOK_SECONDS)


def _more(path: Path, place: int | None, out: TextIO) -> int:
    """Print what a file holds beyond a place; returns the new one."""
    try:
        size = path.stat().st_size
    except OSError:
        return place or 0
    if place is None:
        place = max(0, size - TAIL_BYTES)
    if size < place:  # begun anew
        place = 0
    with open(path, "rb") as file:
        file.seek(place)
        text = file.read()
    out.write(text.decode(errors="replace"))
    return place + len(text)
