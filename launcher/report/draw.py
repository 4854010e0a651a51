"""The picture: loss above, gradient norm, learning rate and speed below, all against tokens.

Lines are named where they end rather than in a legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from launcher.callbacks.units import PREFIXES, count, duration, finite
from launcher.report.canvas import file_of, in_style
from launcher.report.collect import Run
from launcher.report.curves import draw_curve
from launcher.report.marks import end_labels, mark_breaks, mark_phases, shared_baselines, write_labels
from launcher.report.theme import Theme

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_ROUND = [1, 2, 2.5, 5, 10]
_MOST_DETAILED = 3  # beside more runs only smoothed curves and the last validation are drawn
_SIZE = (11.0, 7.8)


def picture(runs: Sequence[Run], theme: Theme, form: Literal["png", "svg"]) -> bytes:
    """The picture of one run, or of several in one frame. A PNG stands alone and has a title, an SVG lies in a page."""
    with in_style(theme):
        return file_of(_figure(runs, theme, titled=form == "png"), theme, form)


def _figure(runs: Sequence[Run], theme: Theme, titled: bool) -> Figure:
    figure = Figure(figsize=(_SIZE[0], _SIZE[1] + (0.6 if titled else 0.0)))
    top = 0.955 if not titled else 0.855 if len(runs) == 1 else 0.885
    room = 0.01 + max(len(label.text) * (0.0079 if label.bold else 0.007) for label in end_labels(runs, theme))
    upper = figure.add_gridspec(1, 1, left=0.055, right=0.985 - room, top=top, bottom=0.415)
    lower = figure.add_gridspec(1, 3, left=0.055, right=0.985, top=0.3, bottom=0.045, wspace=0.2)
    if titled:
        _title(figure, runs, theme)
    _draw_loss(figure.add_subplot(upper[0]), runs, theme)
    panels: list[tuple[str, str]] = [
        ("grad_norm", "gradient norm"),
        ("learning_rate", "learning rate"),
        ("tokens_per_second", "tokens per second"),
    ]
    for index, (name, title) in enumerate(panels):
        _draw_small(figure.add_subplot(lower[index]), runs, theme, name, title)
    return figure


def _title(figure: Figure, runs: Sequence[Run], theme: Theme) -> None:
    run = runs[0]
    title = run.name if len(runs) == 1 else f"{len(runs)} runs side by side"
    figure.text(0.055, 0.948, title, fontsize=17, fontweight="bold")
    if len(runs) > 1:
        return
    steps, parameters = run.steps[-1]["step"], run.facts.get("parameters") or run.at_start("parameters")
    parts = [
        f"validation {run.validation_loss:.3f} nats/token" if run.validation_loss is not None else "",
        f"{run.bits_per_byte:.3f} bits/byte" if run.bits_per_byte is not None else "",
        f"{count(parameters)} parameters" if parameters else "",
        f"{count(run.tokens[-1])} tokens",
        f"{steps:,} step{'s' if steps > 1 else ''}",
        duration(run.seconds) if run.seconds is not None else "",
    ]
    figure.text(0.055, 0.917, "  ·  ".join(filter(None, parts)), color=theme.quiet, fontsize=11)


def _draw_loss(axes: Axes, runs: Sequence[Run], theme: Theme) -> None:
    alone = len(runs) == 1
    heights: list[float] = []
    for index, run in enumerate(runs):
        smoothed = draw_curve(axes, run, "loss", theme.pen(index), _raw(runs))
        heights.extend(smoothed[np.isfinite(smoothed)])
        heights.extend(_draw_validation(axes, run, theme, index, alone, last_only=len(runs) > _MOST_DETAILED))
    for value in shared_baselines(runs).values():
        heights.append(value)
        axes.axhline(value, color=theme.quiet, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.5)
    _frame(axes, runs, theme, "loss, nats per token", large=True)
    axes.ticklabel_format(axis="y", useOffset=False, style="plain")
    low, high = (min(heights), max(heights)) if heights else (0.0, 1.0)
    span = max(high - low, 0.02 * high, 1e-3)
    # Room at the top for the names of phases, at the bottom for the marks of resumes and skips.
    axes.set_ylim(low - (0.13 if alone else 0.05) * span, high + 0.07 * span)
    if alone:
        mark_phases(axes, runs[0], theme, named=True)
        mark_breaks(axes, runs[0], theme)
    write_labels(axes, end_labels(runs, theme))


def _draw_validation(axes: Axes, run: Run, theme: Theme, index: int, alone: bool, last_only: bool) -> list[float]:
    points = [
        (tokens, loss)
        for record in run.validations
        if (tokens := finite(record.get("tokens"))) is not None
        and (loss := finite(record.get("validation_loss"))) is not None
    ]
    if not points:
        return []
    x, y = zip(*points[-1:] if last_only else points, strict=True)
    colour = theme.series[1] if alone else theme.pen(index).colour
    size = 6.0 if alone and len(points) <= 40 else 4.5
    axes.plot(x, y, color=colour, linewidth=1.2 if alone else 0, alpha=0.6, zorder=4)
    axes.plot(x, y, "o", color=colour, markersize=size, markeredgecolor=theme.paper, markeredgewidth=size / 5,
              zorder=5, clip_on=False)  # fmt: skip
    return list(y)


def _raw(runs: Sequence[Run]) -> float:
    """The opacity of measured values, lower the more runs cover each other."""
    return 0.3 if len(runs) == 1 else 0.15 if len(runs) <= _MOST_DETAILED else 0.0


def _draw_small(axes: Axes, runs: Sequence[Run], theme: Theme, name: str, title: str) -> None:
    if name == "grad_norm":
        axes.set_yscale("log")
    for index, run in enumerate(runs):
        draw_curve(axes, run, name, theme.pen(index), _raw(runs))
    if name == "grad_norm":
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        high = axes.get_ylim()[1]
        axes.set_ylim(0, high * 1.05 if high > 0 else 1)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
        if name == "learning_rate" and 0 < high < 0.1:
            power = int(np.floor(np.log10(high)))
            title += f" \N{MULTIPLICATION SIGN} 10{str(power).translate(_SUPERSCRIPT)}"
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 10**power:.3g}"))
        else:
            axes.yaxis.set_major_formatter(_counts(high))
    _frame(axes, runs, theme, title)
    if len(runs) == 1:
        mark_phases(axes, runs[0], theme, named=False)


def _frame(axes: Axes, runs: Sequence[Run], theme: Theme, title: str, large: bool = False) -> None:
    end = max(run.tokens[-1] for run in runs)
    axes.set_xlim(0, end * (1.0 if large else 1.02))
    axes.set_title(title, loc="left", fontsize=11.5 if large else 10.5, fontweight="bold", color=theme.ink, pad=9)
    axes.xaxis.set_major_locator(MaxNLocator(8 if large else 4, steps=_ROUND))
    axes.xaxis.set_major_formatter(_counts(end))
    if large:
        axes.set_xlabel("tokens", color=theme.quiet, labelpad=3)
    axes.tick_params(length=0, pad=5)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)


def _counts(largest: float) -> FuncFormatter:
    """Ticks as 0, 0.5M, 1M: one prefix for the whole axis."""
    scale, prefix = next((pair for pair in PREFIXES if largest >= pair[0]), (1.0, ""))

    def write(value: float, _: int) -> str:
        return f"{value / scale:g}{prefix}" if value else "0"

    return FuncFormatter(write)
