"""Moments between the command and its first step, handed from the launcher to its ranks: `<run>/startup.json` tells what
took how long. Times are of the monotonic clock, which all processes of a machine share."""

from __future__ import annotations

import json
import os
import time
from itertools import pairwise
from pathlib import Path

VARIABLE, FILE_NAME = "TRIAXIS_MARKS", "startup.json"


def begin() -> None:
    """The command has come so far: forget older marks and note when this process was born."""
    os.environ[VARIABLE] = f"command={born():.3f};"
    mark("interpreter and imports")


def begin_again() -> None:
    """Ranks are about to be started anew: what comes is counted from here."""
    os.environ[VARIABLE] = f"restart={time.monotonic():.3f};"


def mark(part: str) -> None:
    """A part has ended now."""
    os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')}{part}={time.monotonic():.3f};"


def marks() -> list[tuple[str, float]]:
    """(part, when it ended) of this process and of whoever started it."""
    pairs = (entry.rpartition("=") for entry in os.environ.get(VARIABLE, "").split(";") if entry)
    return [(part, float(when)) for part, _, when in pairs]


def write_startup(directory: Path) -> None:
    """The first step has ended: `{"parts": [[name, seconds], …]}`, in order."""
    found = marks()
    parts = [(part, round(when - before, 3)) for (_, before), (part, when) in pairwise(found)]
    partial = directory / f"{FILE_NAME}.partial"
    partial.write_text(json.dumps({"parts": parts}, indent=1))
    partial.replace(directory / FILE_NAME)


def born() -> float:
    """When this process was, to a hundredth of a second (Linux: field 22 of /proc/self/stat, in ticks since the boot)."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return time.monotonic()
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - since_boot
