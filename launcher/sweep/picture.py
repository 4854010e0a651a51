"""The picture of a sweep: gaps to the baseline by label, a colour for each column, seeds as bars, published gaps as marks."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme
from launcher.sweep.results import Line, Results

_LINE, _MARK, _MARGIN = 0.17, 0.15, 0.12  # inches: a line of this sweep, a published gap, above and below a label's
_OURS, _PUBLISHED = "this sweep", "published"


def picture(results: Results, theme: Theme = LIGHT) -> bytes:
    """A PNG: a row for each label; without a baseline of the figure itself."""
    sweep = results.sweep
    labels = [
        label for label in results.labels if any(_drawn(results, line) for line in results.lines if line.label == label)
    ]
    tall = sum(_height(results, label) for label in labels)
    with in_style(theme):
        figure = Figure(figsize=(10.0, 1.3 + tall), layout="constrained")
        axes = figure.subplots()
        note = f"bars: {sweep.repeat}s, smallest to largest" if sweep.repeat in sweep.axes else ""
        words = sweep.metric.replace("_", " ")
        title(axes, theme, f"{sweep.name}: {words}" + (f", gap to {sweep.baseline}" if sweep.baseline else ""), note)
        at, ticks = 0.0, []
        for label in labels:
            _label(axes, results, label, at + _MARGIN, theme)
            ticks.append(at + _height(results, label) / 2)
            at += _height(results, label)
            axes.axhline(at, color=theme.grid, linewidth=0.8)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(max(at, _LINE), 0)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.1)  # room for names of what was published
        if sweep.baseline:
            axes.axvline(0, color=theme.quiet, linewidth=1)
        _legend(axes, theme)
        return file_of(figure, theme, "png")


def _drawn(results: Results, line: Line) -> list[float]:
    """What is drawn of a line: its gaps, or without a baseline its values. NaN is not."""
    found = line.gaps if results.sweep.baseline else line.values
    return [value for value in found.values() if not math.isnan(value)]


def _height(results: Results, label: str) -> float:
    return 2 * _MARGIN + _LINE * len(results.columns) + _MARK * len(results.published.get(label, {}))


def _label(axes: Axes, results: Results, label: str, at: float, theme: Theme) -> None:
    """Lines of a label from `at` downwards, then what others published of it, each with its name."""
    for number, of in enumerate(results.columns):
        line = results.line(label, of)
        if line is not None and (values := _drawn(results, line)):
            colour, place = theme.pen(number).colour, at + _LINE * (number + 0.5)
            axes.plot([min(values), max(values)], [place, place], color=colour, linewidth=3, alpha=0.45)
            middle, name = math.fsum(values) / len(values), " ".join(of.values()) or _OURS
            axes.plot([middle], [place], "o", color=colour, markersize=6, label=name)
    at += _LINE * len(results.columns)
    for number, (name, gap) in enumerate(results.published.get(label, {}).items()):
        place = at + _MARK * (number + 0.5)
        axes.plot([gap], [place], "D", color=theme.ink, markersize=4, fillstyle="none", label=_PUBLISHED)
        axes.annotate(
            name, (gap, place), (6, 0), textcoords="offset points", va="center", fontsize=7.5, color=theme.quiet
        )


def _legend(axes: Axes, theme: Theme) -> None:
    handles, names = axes.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    ordered = sorted(once, key=lambda name: name == _PUBLISHED)
    legend = axes.legend(
        [once[name] for name in ordered], ordered, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    for text in legend.get_texts():
        text.set_color(theme.quiet)
