"""A sweep on the screen: what happens while it runs, its state, its table."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.sweep.results import Line, Results
from launcher.sweep.running import LOG
from launcher.sweep.store import STATES, Row, Store
from launcher.terminal import new_table

_LOOK_SECONDS = 1.0  # between readings of what runs have come to


class Screen:
    """Tells of a sweep while it runs: a line where a run begins and ends, on a terminal a bar as well."""

    def __init__(self, console: Console, store: Store, among: Collection[str], total: int = 0) -> None:
        self.console, self._looked = console, 0.0
        states = {row.fingerprint: row.state for row in store.rows() if row.fingerprint in among}
        self.total, self.ended_before = total or len(states), sum(state == "done" for state in states.values())
        self.count = self.ended_before
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=self.total, completed=self.count)

    def __enter__(self) -> Screen:
        done = f", {self.ended_before} of them done before" if self.ended_before else ""
        self.console.print(f"sweep  {self.total} runs{done}")
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def began(self, row: Row) -> None:
        """A run starts."""
        self.console.print(f"begins  {row.name}")

    def ended(self, row: Row, state: str, told: str) -> None:
        """A run ended."""
        self.count += state == "done"
        self._bar.update(self._task, completed=self.count)
        self.console.print(f"{state:7} {row.name}  {told}  [{self.count}/{self.total} done]")

    def looked(self, running: Sequence[tuple[Row, Path]]) -> None:
        """Say on the bar how far runs are."""
        if time.monotonic() - self._looked > _LOOK_SECONDS and not self._bar.disable:
            self._looked = time.monotonic()
            told = "; ".join(f"{row.name}: {how_far(directory)}" for row, directory in running)
            self._bar.update(self._task, description=told.replace("[", "\\["))


def how_far(directory: Path) -> str:
    """The newest step of a run in words."""
    try:
        with (directory / FILE_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "starts"
    for line in reversed(lines):
        record = parse_line(line) or {}
        if record.get("kind") == "step" and isinstance(record.get("loss"), float):
            return f"{record['tokens']:,} tokens, loss {record['loss']:.4f}"
    return "starts"


def failures(directory: Path, rows: Sequence[Row]) -> list[str]:
    """A line for each run that failed, once."""
    failed = {row.fingerprint: row for row in reversed(rows) if row.state == "failed"}
    return [
        f"failed  {row.name}: {row.error}  (log: {directory / row.directory / LOG})"
        for row in reversed(failed.values())
    ]


def show_status(console: Console, directory: Path, rows: Sequence[Row]) -> None:
    """How many runs are in which state, what is in progress, and why others failed."""
    runs = {row.fingerprint: row for row in reversed(rows)}
    counted = Counter(row.state for row in runs.values())
    console.print(", ".join(f"{counted[state]} {state}" for state in STATES) + f": {len(runs)} runs in {directory}")
    for row in reversed(runs.values()):
        if row.state == "running":
            host, pid = row.owner.split()[0], row.owner.split()[-3]
            beat = f"heard of {time.time() - row.heartbeat:.0f} s ago"
            told = f"running  {row.name}: {how_far(directory / row.directory)}; process {pid} on {host}, {beat}"
            console.print(told)
    for text in failures(directory, rows):
        console.print(text)


def show_table(console: Console, results: Results) -> None:
    """A row for each label of the compared axis, columns for the others."""
    sweep = results.sweep
    if not results.lines:
        console.print("no run is done yet")
        return
    heads: list[str] = []
    for of in results.columns:
        heads += [" ".join(of.values()) or sweep.metric, *([f"gap to {sweep.baseline}"] if sweep.baseline else [])]
    published = ["published gaps"] if results.published else []
    over = f"mean over {sweep.repeat}s (largest minus smallest)" if sweep.repeat in sweep.axes else ""
    console.print(f"{sweep.name}: {sweep.metric} {over}".rstrip(), style="bold")
    table = new_table("", sweep.compared, *heads, *published)
    for label in results.labels:
        cells: list[str] = []
        for of in results.columns:
            line = results.line(label, of)
            cells += [_mean(line), _gap(line)] if sweep.baseline else [f"{_mean(line)}{_spread(line)}"]
        told = ", ".join(f"{name} {gap:+.2f}" for name, gap in results.published.get(label, {}).items())
        table.add_row(label, *cells, *([told] if published else []))
    console.print(table)


def _mean(line: Line | None) -> str:
    if line is None:
        return "…"
    partly = f" {len(line.values)} of {line.expected}" if len(line.values) < line.expected else ""
    return ("diverged" if math.isnan(line.mean) else f"{line.mean:,.4f}") + partly


def _spread(line: Line | None) -> str:
    return f" ({line.spread:.4f})" if line is not None and len(line.values) > 1 else ""


def _gap(line: Line | None) -> str:
    """The gap; of the baseline itself what the others' gaps are to be held against, its own spread."""
    if line is None or line.gap is None:
        return _spread(line)
    return f"{line.gap:+.4f}" + (f" ({line.gap_spread:.4f})" if len(line.gaps) > 1 else "")
