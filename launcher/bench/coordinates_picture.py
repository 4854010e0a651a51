"""The picture of a coordinate check: how far activations moved over width or depth, a line a step, the arms side by side."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, ScalarFormatter

from launcher.bench.coordinates import PARTS
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme

_PANEL = (2.9, 2.6)  # inches


def picture(figures: dict[str, Any], theme: Theme = LIGHT) -> bytes:
    """A PNG: a row for each arm, a column for each part, both axes logarithmic."""
    arms = figures["moved"]
    with in_style(theme):
        size = (_PANEL[0] * len(PARTS) + 0.4, _PANEL[1] * len(arms) + 0.9)
        figure = Figure(figsize=size, layout="constrained")
        told = (
            f"How far activations move by {figures['along']}: {figures['model']}, {figures['optimizer']} at learning rate "
            f"{figures['learning_rate']:g}"
        )
        figure.suptitle(told, x=0.01, ha="left", fontsize=13, fontweight="bold")
        panels = figure.subplots(len(arms), len(PARTS), squeeze=False, sharex=True, sharey="col")
        for row, (name, arm) in zip(panels, arms.items(), strict=True):
            for axes, part in zip(row, PARTS, strict=True):
                _panel(axes, arm, part, figures["steps"], theme)
                title(axes, theme, part, f"slope {figures['slopes'][name][part]:+.2f}")
            row[0].set_ylabel(f"{name}: root mean square", color=theme.quiet)
        for axes in panels[-1]:
            axes.set_xlabel(figures["along"], color=theme.quiet)
        handles, names = panels[0][0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        for text in legend.get_texts():
            text.set_color(theme.quiet)
        return file_of(figure, theme, "png")


def _panel(axes: Axes, arm: dict[int, Any], part: str, steps: int, theme: Theme) -> None:
    sizes = [int(size) for size in arm]
    for step in range(steps):
        shade = (step + 1) / steps
        values = [one[part][step] for one in arm.values()]
        told = f"after {step + 1} step" + ("s" if step else "")
        axes.plot(sizes, values, "o-", color=theme.series[0], alpha=0.2 + 0.8 * shade, markersize=3.5, label=told)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
