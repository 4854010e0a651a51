"""`metrics.jsonl`: what the run did, one strict JSON object a line, kept true over kills and resumes.

Every line has `kind` and `time` (seconds since the epoch). The kinds are

    start       start_step total_steps total_tokens parameters world_size facts   one for each process that trained
    step        the fields of StepRecord, and of a model with experts router_entropy router_balance router_largest_load
                router_drop_share (models/moe/telemetry.py); in steps where operands in block formats are counted
                format_saturated format_last_bin format_underflow format_snr format_gradient_bias, the worst of all
                (models/formats/telemetry.py)
    validation  the fields of ValidationRecord
    event       step event text
    sample      step prompt text
    end         outcome                                                            none where the process was killed

JSON knows no NaN and no infinity; they are written as null. Lines are appended and flushed one by one, so a kill can
only tear the last one. A resume goes back to a checkpoint: what lies beyond it never happened to the weights that go
on, so `on_start` takes it out and the curve keeps exactly one value a step.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from launcher.callbacks.base import Callback, RunView, StepRecord, ValidationRecord
from models.formats.telemetry import headline as formats_headline
from models.moe.telemetry import headline

FILE_NAME = "metrics.jsonl"

# These will be written again when the steps beyond the checkpoint are; others, as `interrupted`, tell what happened.
_REPEATED_KINDS = frozenset({"step", "validation", "sample", "routing", "formats"})
_REPEATED_EVENTS = frozenset({"checkpoint", "phase", "skip"})


def strict(value: Any) -> Any:
    """`value` as plain data that strict JSON can hold: NaN and infinities are None, unknown types their text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [strict(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        return strict(value.item())
    return str(value)


def parse_line(line: str) -> dict[str, Any] | None:
    """The record in one line of a metrics file, or None where the line is torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def repair(path: Path, last_step: int) -> None:
    """Remove torn lines, and what the steps after `last_step` wrote, from a metrics file. Atomic; no file is fine."""
    if not path.exists():
        return
    draft = path.with_name(path.name + ".repair")
    changed = False
    # Line by line: the file of a long run has hundreds of megabytes.
    with path.open(encoding="utf-8", errors="replace", newline="\n") as old, draft.open("w", encoding="utf-8") as new:
        for line in old:
            record = parse_line(line)
            keep = record is not None and not _undone(record, last_step)
            changed |= not keep or not line.endswith("\n")
            if keep:
                new.write(line.rstrip("\n") + "\n")
        new.flush()
        os.fsync(new.fileno())
    if changed:
        os.replace(draft, path)
    else:
        draft.unlink()


def _undone(record: dict[str, Any], last_step: int) -> bool:
    step = record.get("step")
    if not isinstance(step, int) or step <= last_step:
        return False
    kind = record.get("kind")
    return kind in _REPEATED_KINDS or (kind == "event" and record.get("event") in _REPEATED_EVENTS)


class MetricsFile(Callback):
    """Appends all that happens to `<run>/metrics.jsonl`."""

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_start(self, run: RunView) -> None:
        """Repair what an earlier process left, then append to it."""
        path = run.directory / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path, run.start_step)
        self._file = path.open("a", encoding="utf-8")
        names = ("name", "start_step", "total_steps", "total_tokens", "parameters", "world_size", "facts")
        self._write("start", {name: getattr(run, name) for name in names})

    def on_step(self, record: StepRecord) -> None:
        """One `step` line; of routing and formats their headlines, the rest is in routing.jsonl and formats.jsonl."""
        fields = {name: value for name, value in vars(record).items() if name not in ("routing", "formats")}
        self._write("step", {**fields, **headline(record.routing), **formats_headline(record.formats)})

    def on_validation(self, record: ValidationRecord) -> None:
        """One `validation` line."""
        self._write("validation", asdict(record))

    def on_sample(self, step: int, prompt: str, text: str) -> None:
        """One `sample` line."""
        self._write("sample", {"step": step, "prompt": prompt, "text": text})

    def on_event(self, step: int, kind: str, message: str) -> None:
        """One `event` line."""
        self._write("event", {"step": step, "event": kind, "text": message})

    def on_end(self, outcome: str) -> None:
        """Write the outcome and close the file."""
        if self._file is not None:
            self._write("end", {"outcome": outcome})
            self._file.close()
            self._file = None

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        if self._file is None:  # before on_start, when the directory is unknown, or after on_end
            return
        line = {"kind": kind, **strict(fields), "time": round(time.time(), 3)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
