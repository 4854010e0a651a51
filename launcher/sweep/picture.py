"""The picture of a sweep: gaps to the baseline by label, a colour for each column, seeds as bars, published gaps as marks."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme
from launcher.sweep.results import Line, Results

_LINE, _GAP = 0.22, 0.35  # inches of a line, and between labels


def picture(results: Results, theme: Theme = LIGHT) -> bytes:
    """A PNG: a row for each label; without a baseline of the figure itself."""
    sweep = results.sweep
    labels = [label for label in results.labels if label != sweep.baseline and _any(results, label)]
    tall = len(labels) * (_GAP + _LINE * max(1, len(results.columns)))
    with in_style(theme):
        figure = Figure(figsize=(10.0, 1.5 + tall), layout="constrained")
        axes = figure.subplots()
        note = f"bars: {sweep.repeat}s, smallest to largest" if sweep.repeat in sweep.axes else ""
        words = sweep.metric.replace("_", " ")
        title(axes, theme, f"{sweep.name}: {words}" + (f", gap to {sweep.baseline}" if sweep.baseline else ""), note)
        ticks = _rows(axes, results, labels, theme)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(tall, 0)
        axes.grid(visible=False, axis="y")
        if sweep.baseline:
            axes.axvline(0, color=theme.quiet, linewidth=1)
        _legend(axes, theme)
        return file_of(figure, theme, "png")


def _any(results: Results, label: str) -> bool:
    return any(_drawn(results, line) for line in results.lines if line.label == label)


def _drawn(results: Results, line: Line) -> list[float]:
    """What is drawn of a line: its gaps, or without a baseline its values. NaN is not."""
    found = line.gaps if results.sweep.baseline else line.values
    return [value for value in found.values() if not math.isnan(value)]


def _rows(axes: Axes, results: Results, labels: list[str], theme: Theme) -> list[float]:
    at, ticks, known = 0.0, [], set()
    for label in labels:
        begin = at + _GAP / 2
        for number, of in enumerate(results.columns):
            line, name = results.line(label, of), " ".join(of.values()) or "this sweep"
            if line is not None and (values := _drawn(results, line)):
                place, pen = begin + _LINE * (number + 0.5), theme.pen(number)
                middle = math.fsum(values) / len(values)
                axes.plot([min(values), max(values)], [place, place], color=pen.colour, linewidth=3, alpha=0.45)
                shown = None if name in known else name
                axes.plot([middle], [place], "o", color=pen.colour, markersize=6.5, label=shown)
                known.add(name)
        height = _LINE * max(1, len(results.columns))
        _published(axes, results.published.get(label, {}), begin, height, theme, first="published" not in known)
        known |= {"published"} if label in results.published else set()
        ticks.append(begin + height / 2)
        at = begin + height + _GAP / 2
        axes.axhline(at, color=theme.grid, linewidth=0.8)
    return ticks


def _published(axes: Axes, gaps: dict[str, float], begin: float, height: float, theme: Theme, *, first: bool) -> None:
    """Published gaps of a label, top to bottom as they are listed, each with its name."""
    for number, (name, gap) in enumerate(gaps.items()):
        place = begin + height * (number + 0.5) / len(gaps)
        axes.plot(
            [gap], [place], "D", color=theme.ink, markersize=4.5, fillstyle="none", label="published" if first else None
        )
        axes.annotate(
            name, (gap, place), (6, 0), textcoords="offset points", va="center", fontsize=7.5, color=theme.quiet
        )
        first = False


def _legend(axes: Axes, theme: Theme) -> None:
    legend = axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(theme.quiet)
