"""What is written and marked on the curves: phases, resumes, skipped steps, and the names of lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from matplotlib.axes import Axes

from launcher.report.collect import Run
from launcher.report.curves import smooth, thin
from launcher.report.theme import Theme


@dataclass(frozen=True)
class Label:
    """A name to write at the right end of a line that ends at height y."""

    y: float
    text: str
    colour: str
    bold: bool = False


def mark_phases(axes: Axes, run: Run, theme: Theme, named: bool) -> None:
    """Borders between phases, and their names where `named`."""
    if len(run.phases) < 2:
        return
    start = 0.0
    for index, phase in enumerate(run.phases):
        if index:
            axes.axvline(start, color=theme.quiet, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1.5)
        end = run.tokens_at(phase.last_step) or start
        # A name is written only where it fits between its borders.
        if named and (end - start) / run.tokens[-1] > 0.012 * len(phase.name) + 0.01:
            place = axes.get_xaxis_transform()
            offset = 0.008 * run.tokens[-1]
            axes.text(start + offset, 0.985, phase.name, transform=place, color=theme.quiet, fontsize=9.5, va="top")
        start = end


def mark_breaks(axes: Axes, run: Run, theme: Theme) -> None:
    """Resumes and skipped steps as small marks above the axis, each kind named once."""
    marks: list[tuple[list[int], str, str, str, float]] = [
        (run.resumes, "^", "resumed", "resumes", 0.03),
        (run.skips, "X", "skipped step", "skipped steps", 0.085),
    ]
    for steps, marker, one, many, height in marks:
        places = [x for step in steps if (x := run.tokens_at(step)) is not None]
        if not places:
            continue
        place = axes.get_xaxis_transform()
        axes.plot(places, [height] * len(places), marker, color=theme.ink, markersize=6, markeredgewidth=0,
                  linestyle="none", transform=place, zorder=6)  # fmt: skip
        text = one if len(places) == 1 else f"{len(places)} {many}"
        at, offset, align = _beside(places, float(run.tokens[-1]))
        axes.annotate(text, (at, height), xycoords=place, xytext=(offset, 0), textcoords="offset points",
                      ha=align, va="center", fontsize=9.5, color=theme.quiet, annotation_clip=False,
                      bbox={"facecolor": theme.paper, "edgecolor": "none", "pad": 1, "alpha": 0.85})  # fmt: skip


def _beside(places: list[float], end: float) -> tuple[float, float, Literal["left", "right"]]:
    """Where the name of a row of marks has room: in the widest gap, or else beyond the right border."""
    borders = [0.0, *places, end]
    gaps = [after - before for before, after in pairwise(borders)]
    widest = gaps.index(max(gaps))
    if max(gaps) < 0.14 * end:
        return end, 9, "left"
    return (places[0], -7, "right") if widest == 0 else (places[widest - 1], 7, "left")


def shared_baselines(runs: Sequence[Run]) -> dict[str, float]:
    """The baselines that all runs have in common: runs on other text or another tokenizer have no line to share."""
    first = runs[0].baselines
    same = all(
        name in run.baselines and abs(run.baselines[name] - value) < 1e-6
        for run in runs[1:]
        for name, value in first.items()
    )
    return first if same else {}


def end_labels(runs: Sequence[Run], theme: Theme) -> list[Label]:
    """What is written beside the loss panel: the last value of every line, baselines included."""
    labels = [Label(value, f"{name} {value:.2f}", theme.quiet) for name, value in shared_baselines(runs).items()]
    for index, run in enumerate(runs):
        colour = theme.pen(index).colour
        smoothed = smooth(thin(run.column("loss")))
        finite = smoothed[np.isfinite(smoothed)]
        trained = float(finite[-1]) if len(finite) else 0.0
        validation = run.validation_loss
        if len(runs) > 1:
            end = validation if validation is not None else trained
            name = run.name if len(run.name) <= 26 else run.name[:25] + "…"
            labels.append(Label(end, f"{name} {end:.2f}", colour, bold=True))
            continue
        labels.append(Label(trained, f"training {trained:.2f}", colour, bold=True))
        if validation is not None:
            labels.append(Label(validation, f"validation {validation:.2f}", theme.series[1], bold=True))
    return labels


def write_labels(axes: Axes, labels: list[Label], gap: float = 0.052) -> None:
    """Write labels beside the right border, moved apart where they would cover each other."""
    low, high = axes.get_ylim()
    ordered = sorted(labels, key=lambda label: label.y)
    places = [float(np.clip((label.y - low) / (high - low), 0.0, 1.0)) for label in ordered]
    wanted = list(places)
    gap = min(gap, 1.0 / len(labels))
    for _ in range(1000):  # neighbours push each other, until none is too near
        moved = False
        places[0], places[-1] = max(places[0], 0.0), min(places[-1], 1.0)
        for i in range(len(places) - 1):
            lack = gap - (places[i + 1] - places[i])
            if lack > 1e-4:
                places[i], places[i + 1], moved = places[i] - lack / 2, places[i + 1] + lack / 2, True
        if not moved:
            break
    for label, place, true in zip(ordered, places, wanted, strict=True):
        axes.annotate(label.text, (1.0, true), xycoords="axes fraction", xytext=(1.012, place),
                      textcoords="axes fraction", va="center", color=label.colour, fontsize=10.5,
                      fontweight="bold" if label.bold else "normal", annotation_clip=False)  # fmt: skip
