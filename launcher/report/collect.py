"""What the files of a run directory say, as one `Run`.

    metrics.jsonl   needed; see launcher/callbacks/metrics.py
    config.yaml     the resolved recipe
    summary.json    what the loop knew at the end: outcome, parameters, validation_loss, bits_per_byte,
                    baselines {name: nats per token}, samples [{prompt, text}], mesh (text), machine, versions

Everything but the metrics may be missing, as after a kill: the start lines of the metrics then stand in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.callbacks.units import baselines, finite

Record = dict[str, Any]


class ReportError(ValueError):
    """A report cannot be made; the message names the file and the cure."""


@dataclass(frozen=True)
class PhaseSpan:
    """The part of a run that one phase covered."""

    name: str
    steps: list[Record]
    validations: list[Record]

    @property
    def first_step(self) -> int:
        """Its first step."""
        return int(self.steps[0]["step"])

    @property
    def last_step(self) -> int:
        """Its last step."""
        return int(self.steps[-1]["step"])


@dataclass(frozen=True)
class Run:
    """One run as its files tell it. Records are in the order of their steps, one a step."""

    directory: Path
    name: str
    steps: list[Record]
    validations: list[Record]
    starts: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    outcome: str = ""  # of the last process; empty where it was killed or still runs
    seconds: float | None = None  # wall clock of all processes together, without the breaks between them
    notes: list[str] = field(default_factory=list)  # what could not be read

    def renamed(self, name: str) -> Run:
        """The same run under another name."""
        return replace(self, name=name)

    def column(self, name: str) -> np.ndarray:
        """One value a step; NaN where a step has none."""
        if name not in self._columns:
            self._columns[name] = _column(self.steps, name)
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    @property
    def tokens(self) -> np.ndarray:
        """Tokens consumed after each step."""
        return self.column("tokens")

    @property
    def facts(self) -> dict[str, Any]:
        """The facts known at the last start, overridden by the summary."""
        known = self.starts[-1].get("facts") if self.starts else None
        return {**(known if isinstance(known, dict) else {}), **self.summary}

    @property
    def baselines(self) -> dict[str, float]:
        """Name to nats per token, worst first."""
        return baselines(self.facts)

    @property
    def validation_loss(self) -> float | None:
        """The final one; the last measured where the run has not ended."""
        return self._final("validation_loss")

    @property
    def bits_per_byte(self) -> float | None:
        """Beside the final validation loss."""
        return self._final("bits_per_byte")

    @property
    def resumes(self) -> list[int]:
        """The steps after which a later process took over."""
        steps = {record.get("start_step") for record in self.starts}
        steps |= {record.get("step") for record in self.events if record.get("event") == "resume"}
        return sorted(step for step in steps if isinstance(step, int) and step > 0)

    @property
    def skips(self) -> list[int]:
        """The steps whose gradient was not finite."""
        return [record["step"] for record in self.steps if record.get("skipped")]

    @cached_property
    def phases(self) -> list[PhaseSpan]:
        """The phases in the order in which they were trained."""
        spans: list[PhaseSpan] = []
        for record in self.steps:
            name = str(record.get("phase") or "")
            if not spans or spans[-1].name != name:
                spans.append(PhaseSpan(name, [], []))
            spans[-1].steps.append(record)
        for record in self.validations:
            inside = [span for span in spans if span.first_step <= record["step"] <= span.last_step]
            if inside:
                inside[0].validations.append(record)
        return spans

    def at_start(self, name: str) -> Any:
        """A number of the last start line, as `total_tokens`; None where there is none."""
        return next((record[name] for record in reversed(self.starts) if record.get(name)), None)

    def tokens_at(self, step: int) -> float | None:
        """Tokens consumed after a step, or after the nearest one before it."""
        numbers = self.column("step")
        index = int(np.searchsorted(numbers, step, side="right")) - 1
        return float(self.tokens[index]) if index >= 0 else None

    def _final(self, name: str) -> float | None:
        measured = [record for record in self.validations if finite(record.get(name)) is not None]
        # A summary may be older than the curve, where a finished run was made longer and then killed.
        if measured and measured[-1]["step"] == self.steps[-1]["step"]:
            return finite(measured[-1][name])
        known = finite(self.summary.get(name))
        return known if known is not None or not measured else finite(measured[-1][name])


def read_run(directory: Path) -> Run:
    """Read a run directory; torn or missing parts are noted, a run without a single step is a ReportError."""
    if not directory.is_dir():
        raise ReportError(f"{directory} is no directory; give the directory of a run, as runs/tiny")
    path = directory / FILE_NAME
    if not path.is_file():
        raise ReportError(f"{path} does not exist, so {directory} is no run directory; give one that a training wrote")
    records = list(_read_lines(path))
    steps = _one_a_step(record for record in records if record.get("kind") == "step")
    if not steps:
        raise ReportError(f"{path} holds no finished step yet; let the run train for a while, then report again")
    notes: list[str] = []
    config_text, config = _read_config(directory / "config.yaml", notes)
    summary = _read_summary(directory / "summary.json", notes)
    starts = [record for record in records if record.get("kind") == "start"]
    last = records[-1]
    return Run(
        directory=directory,
        name=str(_name(config, starts) or directory.resolve().name),
        steps=steps,
        validations=_one_a_step(record for record in records if record.get("kind") == "validation"),
        starts=starts,
        events=[record for record in records if record.get("kind") == "event"],
        samples=[record for record in records if record.get("kind") == "sample"],
        config=config,
        config_text=config_text,
        summary=summary,
        outcome=str(last.get("outcome") or "") if last.get("kind") == "end" else "",
        seconds=_wall_clock(records),
        notes=notes,
    )


def _column(records: list[Record], name: str) -> np.ndarray:
    return np.array([np.nan if (value := finite(record.get(name))) is None else value for record in records])


def _read_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            record = parse_line(line)
            if record is not None:
                yield record


def _one_a_step(records: Iterable[Record]) -> list[Record]:
    # A run that was killed and not resumed yet cannot hold a step twice; two processes in one directory could.
    latest = {record["step"]: record for record in records if isinstance(record.get("step"), int)}
    return [latest[step] for step in sorted(latest)]


def _read_config(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
        config = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        notes.append(f"The recipe is missing: {path.name} cannot be read ({type(error).__name__}).")
        return "", {}
    return text, config if isinstance(config, dict) else {}


def _read_summary(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        notes.append(f"The summary is missing: {path.name} cannot be read ({type(error).__name__}).")
        return {}
    return summary if isinstance(summary, dict) else {}


def _name(config: dict[str, Any], starts: list[Record]) -> Any:
    run = config.get("run")
    named = run.get("name") if isinstance(run, dict) else None
    return named or (starts[-1].get("name") if starts else None)


def _wall_clock(records: list[Record]) -> float | None:
    total, before = 0.0, None
    for record in records:
        now = finite(record.get("time"))
        if now is None:
            continue
        if before is not None and record.get("kind") != "start":
            total += max(0.0, now - before)
        before = now
    if before is not None:
        return total
    seconds = [value for record in records if (value := finite(record.get("step_seconds"))) is not None]
    return sum(seconds) if seconds else None
