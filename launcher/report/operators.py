"""Where the time of a step went that `train.trace_step` had recorded."""

from __future__ import annotations

import json
from pathlib import Path

from launcher.trace import DIRECTORY, OPERATORS


def operators_of(directory: Path, most: int = 20) -> tuple[str, list[list[str]]] | None:
    """What was recorded of a run's step, in a sentence, and rows (name, calls, milliseconds of its own, share), longest first,
    the last of all others together; None where nothing was."""
    path = directory / DIRECTORY / OPERATORS
    if not path.is_file():
        return None
    told = json.loads(path.read_text())
    first, rest = told["operators"][:most], told["operators"][most:]
    if rest:
        _, calls, seconds = zip(*rest, strict=True)
        first.append((f"{len(rest)} others", sum(calls), sum(seconds)))
    whole = sum(seconds for *_, seconds in first)
    rows = [
        [name, f"{calls:,}", f"{1000 * seconds:.2f}", f"{100 * seconds / whole:.1f} %"]
        for name, calls, seconds in first
    ]
    what = "kernels on the GPU" if told["device"] == "cuda" else "operators"
    took = f"Step {told['step']:,} took rank 0 {1000 * told['seconds']:.0f} ms with everything recorded"
    return f"{took}; its {what} by their own time:", rows
