"""The picture of runs at equal compute: loss over parameters for each budget with its parabola, and the best size over compute.

Chinchilla's second approach (arXiv 2203.15556, section 3.2): of runs that cost the same, loss is nearly a parabola in the
logarithm of their size; where it is lowest is the size for that budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from launcher.callbacks.units import count
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import Theme

ALIKE = 0.05  # runs whose compute differs by at most this share have one budget
LEAST = 3  # sizes that a parabola takes


@dataclass(frozen=True)
class Profile:
    """Runs of one budget, sizes ascending. flops: their mean; parabola: of loss over ln(parameters), highest power first."""

    flops: float
    parameters: tuple[float, ...]
    losses: tuple[float, ...]
    parabola: tuple[float, float, float]

    @property
    def best(self) -> float | None:
        """Parameters where the parabola is lowest; None where that lies outside the sizes that ran."""
        square, slope, _ = self.parabola
        if square <= 0:
            return None
        at = -slope / (2 * square)
        inside = math.log(self.parameters[0]) <= at <= math.log(self.parameters[-1])
        return math.exp(at) if inside else None

    def at(self, parameters: float) -> float:
        """The parabola's loss."""
        return float(np.polyval(self.parabola, math.log(parameters)))


def profiles_of(runs: Iterable[tuple[float, float, float]]) -> list[Profile]:
    """Profiles among (flops, parameters, loss) of runs; budgets ascending, those with too few sizes left out. Of runs of one
    size and budget (seeds) the mean counts."""
    groups: list[list[tuple[float, float, float]]] = []
    for run in sorted(one for one in runs if all(map(math.isfinite, one))):
        if groups and run[0] <= groups[-1][0][0] * (1 + ALIKE):
            groups[-1].append(run)
        else:
            groups.append([run])
    found = []
    for group in groups:
        sizes = sorted({parameters for _, parameters, _ in group})
        if len(sizes) < LEAST:
            continue
        losses = [float(np.mean([loss for _, parameters, loss in group if parameters == size])) for size in sizes]
        square, slope, base = map(float, np.polyfit(np.log(sizes), losses, 2))
        found.append(
            Profile(float(np.mean([run[0] for run in group])), tuple(sizes), tuple(losses), (square, slope, base))
        )
    return found


def growth(profiles: Iterable[Profile]) -> tuple[float, float] | None:
    """(a, b) of best size = b x flops^a through the profiles that have a best size; None where fewer than two have."""
    points = [(math.log(one.flops), math.log(one.best)) for one in profiles if one.best is not None]
    if len(points) < 2:
        return None
    budgets, sizes = np.array(points).T
    exponent, base = np.polyfit(budgets, sizes, 1)
    return float(exponent), math.exp(float(base))


def profiles_picture(profiles: list[Profile], theme: Theme, form: Literal["png", "svg"]) -> bytes:
    """Two panels: the profiles, and where two budgets or more have a best size, how it grows."""
    law = growth(profiles)
    with in_style(theme):
        figure = Figure(figsize=(11.0, 4.6), layout="constrained")
        panels = figure.subplots(1, 2, width_ratios=(3, 2)) if law else [figure.subplots()]
        _losses(panels[0], profiles, theme)
        if law:
            _sizes(panels[1], profiles, law, theme)
        return file_of(figure, theme, form)


def _losses(axes: Axes, profiles: list[Profile], theme: Theme) -> None:
    for index, profile in enumerate(profiles):
        pen = theme.pen(index)
        sizes = np.geomspace(profile.parameters[0], profile.parameters[-1], 100)
        axes.plot(sizes, [profile.at(size) for size in sizes], color=pen.colour, linestyle=pen.dashes, linewidth=1.6)
        axes.plot(
            profile.parameters,
            profile.losses,
            "o",
            color=pen.colour,
            markersize=5.5,
            label=f"{power_of_ten(profile.flops)} FLOP",
        )
        if profile.best is not None:
            axes.plot(
                [profile.best], [profile.at(profile.best)], "o", color=pen.colour, markersize=12, fillstyle="none"
            )
    title(axes, theme, "validation loss over parameters", "rings: lowest")
    axes.set_xscale("log")
    _size_ticks(axes, sorted({size for profile in profiles for size in profile.parameters}))
    for text in axes.legend(frameon=False, fontsize=9.5).get_texts():
        text.set_color(theme.quiet)


def _size_ticks(axes: Axes, sizes: list[float]) -> None:
    """The sizes that ran, as many as have room."""
    chosen: list[float] = []
    for size in sizes:
        if not chosen or size > 1.5 * chosen[-1]:
            chosen.append(size)
    axes.xaxis.set_major_locator(FixedLocator(chosen))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))


def _sizes(axes: Axes, profiles: list[Profile], law: tuple[float, float], theme: Theme) -> None:
    exponent, base = law
    budgets = np.array([profile.flops for profile in profiles])
    line = np.geomspace(budgets.min() / 1.5, budgets.max() * 1.5, 50)
    axes.plot(line, base * line**exponent, color=theme.quiet, linewidth=1.4, linestyle=(0, (5, 3)))
    for index, profile in enumerate(profiles):
        if profile.best is not None:
            axes.plot([profile.flops], [profile.best], "o", color=theme.pen(index).colour, markersize=7)
            axes.annotate(
                count(profile.best), (profile.flops, profile.best), (8, -10), textcoords="offset points",
                fontsize=9.5, color=theme.quiet,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(budgets)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(y=0.2)
    title(axes, theme, "best parameters over FLOP", f"grows as FLOP^{exponent:.2f}")


def power_of_ten(value: float) -> str:
    """2.0e12 as 2e12: two digits."""
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
