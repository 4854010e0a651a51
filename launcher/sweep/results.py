"""Figures laid beside one another: means over the runs that repeat each other, gaps to the baseline, spreads."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.callbacks.metrics import strict
from launcher.sweep.config import SweepConfig
from launcher.sweep.store import Row


@dataclass(frozen=True)
class Line:
    """Runs that differ in the repeated axis alone.

    label: on the compared axis; of: labels on the others; values: the figure by label of the repeated axis ("" where there is
    none); gaps: to the baseline's run of the same labels, where both are done; expected: runs that there will be.
    """

    label: str
    of: dict[str, str]
    values: dict[str, float]
    gaps: dict[str, float]
    expected: int

    @property
    def mean(self) -> float:
        """Of the values."""
        return math.fsum(self.values.values()) / len(self.values)

    @property
    def spread(self) -> float:
        """The largest value minus the smallest."""
        return max(self.values.values()) - min(self.values.values())

    @property
    def gap(self) -> float | None:
        """Mean of the gaps, each between two runs with the same labels, so that what both share cancels."""
        return math.fsum(self.gaps.values()) / len(self.gaps) if self.gaps else None

    @property
    def gap_spread(self) -> float:
        """The largest gap minus the smallest."""
        return max(self.gaps.values()) - min(self.gaps.values())


@dataclass(frozen=True)
class Results:
    """All lines that have a value, in the order of the axes. columns: labels of the other axes, each as many as there are."""

    sweep: SweepConfig
    lines: tuple[Line, ...]
    columns: tuple[dict[str, str], ...]
    labels: tuple[str, ...]
    rows: tuple[Row, ...]

    def line(self, label: str, of: dict[str, str]) -> Line | None:
        """The line of a label in a column; None where no run of it is done."""
        return next((line for line in self.lines if line.label == label and line.of == of), None)

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """Published gaps by label and name."""
        return {
            str(label): {str(name): float(gap) for name, gap in found.items()}
            for label, found in self.sweep.published.items()
        }


def results_of(sweep: SweepConfig, rows: Sequence[Row]) -> Results:
    """Results of a sweep's rows; only those that are done count."""
    compared, repeat = sweep.compared, sweep.repeat if sweep.repeat in sweep.axes else ""
    values: dict[tuple[tuple[str, str], ...], dict[str, dict[str, float]]] = {}  # column -> label -> repeat -> figure
    expected: dict[tuple[Any, str], int] = {}
    for row in rows:
        column = tuple((axis, label) for axis, label in row.labels.items() if axis not in (compared, repeat))
        label = row.labels[compared]
        found = values.setdefault(column, {}).setdefault(label, {})
        expected[column, label] = expected.get((column, label), 0) + 1
        if row.state == "done":
            figure = row.figures.get(sweep.metric)
            found[row.labels.get(repeat, "")] = math.nan if figure is None else float(figure)
    lines = []
    for column, labels in values.items():
        base = labels.get(sweep.baseline, {})
        for label, found in labels.items():
            if found:
                gaps = {} if label == sweep.baseline else {one: found[one] - base[one] for one in found if one in base}
                lines.append(Line(label, dict(column), found, gaps, expected[column, label]))
    names = dict.fromkeys(label for labels in values.values() for label in labels)
    return Results(sweep, tuple(lines), tuple(dict(column) for column in values), tuple(names), tuple(rows))


def write_csv(results: Results, path: Path) -> None:
    """A line for each label and column."""
    axes = list(results.columns[0]) if results.columns else []
    metric = results.sweep.metric
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        head = [
            results.sweep.compared,
            *axes,
            "runs",
            "expected",
            metric,
            f"{metric}_spread",
            "gap",
            "gap_spread",
            "published",
        ]
        out.writerow(head)
        for line in results.lines:
            gap, spread = (repr(line.gap), repr(line.gap_spread)) if line.gap is not None else ("", "")
            told = " ".join(f"{name}:{gap}" for name, gap in results.published.get(line.label, {}).items())
            own = [line.label, *line.of.values(), len(line.values), line.expected, repr(line.mean), repr(line.spread)]
            out.writerow([*own, gap, spread, told])


def write_json(results: Results, path: Path) -> None:
    """The same, with every run's own figures; NaN is null."""
    sweep = results.sweep
    lines = [
        {
            sweep.compared: line.label,
            **line.of,
            "values": line.values,
            "mean": line.mean,
            "spread": line.spread,
            "gaps": line.gaps,
            "gap": line.gap,
            "gap_spread": line.gap_spread if line.gaps else None,
            "expected": line.expected,
        }
        for line in results.lines
    ]
    runs = [{**row.labels, "state": row.state, "directory": row.directory, **row.figures} for row in results.rows]
    names = {"sweep": sweep.name, "metric": sweep.metric, "compare": sweep.compared, "baseline": sweep.baseline}
    everything = {**names, "lines": lines, "published": results.published, "runs": runs}
    path.write_text(json.dumps(strict(everything), indent=1, allow_nan=False) + "\n")
