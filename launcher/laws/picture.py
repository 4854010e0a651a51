"""The picture of a fit: losses at equal compute with their optima, the best size over compute, and what the law misses."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from launcher.callbacks.units import count
from launcher.laws.result import Fit
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_NAMED = 7  # lines of equal compute that are named where they end


def law_picture(fit: Fit, theme: Theme = LIGHT, form: Literal["png", "svg"] = "png") -> bytes:
    """A PNG or SVG of a fit: those of three panels that its law has something for."""
    panels = [panel for has, panel in _panels(fit) if has]
    with in_style(theme):
        figure = Figure(figsize=(0.5 + 5.0 * len(panels), 4.9))
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 0.86 if form == "png" else 1))
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            panel(axes, fit, theme)
        if form == "png":
            figure.text(0.012, 0.94, fit.title, fontsize=13, fontweight="bold", color=theme.ink)
            figure.text(0.012, 0.885, fit.formula, fontsize=10, color=theme.quiet)
        return file_of(figure, theme, form)


def _panels(fit: Fit) -> list[tuple[bool, Any]]:
    return [
        (bool(fit.profiles), _profiles),
        (bool(fit.frontier), _frontier),
        ("predicted" in fit.points, _residuals),
        *((True, partial(_against, name=name)) for name in fit.against),
    ]


def _colours(theme: Theme) -> LinearSegmentedColormap:
    """From little compute to much: the theme's own colours, which differ in lightness too."""
    ends = (theme.series[5], theme.series[0], theme.series[3], theme.series[1])
    return LinearSegmentedColormap.from_list("compute", ends if theme is LIGHT else ends[1:])


def _profiles(axes: Axes, fit: Fit, theme: Theme) -> None:
    """Loss over parameters; a line for each budget, its optimum as a ring, runs as dots of its colour."""
    colours, budgets = _colours(theme), np.array([float(one["budget"]) for one in fit.profiles])
    compute = fit.points.get("flops", budgets)
    norm = LogNorm(min(compute.min(), budgets.min()), max(compute.max(), budgets.max() * (1 + 1e-9)))
    if "params" in fit.points:
        axes.scatter(fit.points["params"], fit.points["loss"], c=compute, cmap=colours, norm=norm, s=16, linewidths=0,
                     alpha=0.85, zorder=3)  # fmt: skip
    for one in fit.profiles:
        colour = colours(norm(float(one["budget"])))
        axes.plot(one["params"], one["loss"], color=colour, linewidth=1.6, zorder=2)
        lowest = int(np.argmin(one["loss"]))
        best = (float(one.get("best_params", one["params"][lowest])), float(one.get("best_loss", one["loss"][lowest])))
        axes.plot(
            *best, "o", markersize=7, markerfacecolor=theme.paper, markeredgecolor=colour, markeredgewidth=1.8, zorder=4
        )
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low, high * (high / low) ** 0.1)
    shown = [np.min([one["loss"].min() for one in fit.profiles]), *fit.points.get("loss", ())]
    room = (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - 0.07 * room, max(shown) + 0.07 * room)
    for one in fit.profiles:
        if len(fit.profiles) <= _MOST_NAMED or one is fit.profiles[0] or one is fit.profiles[-1]:
            _named(axes, one, theme)
    counts(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(7))
    title(axes, theme, "loss at equal compute", "FLOPs at the lines' ends")
    axes.set_xlabel("parameters", color=theme.quiet)


def _named(axes: Axes, one: dict[str, np.ndarray], theme: Theme) -> None:
    """The budget of a line, where it leaves the frame or ends."""
    top = axes.get_ylim()[1]
    last = int(np.flatnonzero(one["loss"] <= top)[-1]) if (one["loss"] <= top).any() else -1
    left = last < len(one["loss"]) - 1
    axes.annotate(power_text(float(one["budget"])), (float(one["params"][last]), float(one["loss"][last])),
                  (4, -4 if left else 0), textcoords="offset points", va="top" if left else "center", fontsize=8.5,
                  color=theme.quiet).set_in_layout(False)  # fmt: skip


def _frontier(axes: Axes, fit: Fit, theme: Theme) -> None:
    """Best parameters over compute with their interval, and the budgets that were asked for."""
    found, colour = fit.frontier, theme.series[0]
    if "params_low" in found:
        axes.fill_between(
            found["flops"], found["params_low"], found["params_high"], color=colour, alpha=0.18, linewidth=0
        )
    if {"flops", "params"} <= set(fit.points):
        axes.plot(
            fit.points["flops"], fit.points["params"], ".", color=theme.quiet, markersize=3.5, alpha=0.45, zorder=2
        )
    axes.plot(found["flops"], found["params"], color=colour, linewidth=2.2, zorder=3)
    for one in fit.profiles:
        if "best_params" in one:
            axes.plot(float(one["budget"]), float(one["best_params"]), "o", markersize=6.5, markerfacecolor=theme.paper,
                      markeredgecolor=colour, markeredgewidth=1.8, zorder=4)  # fmt: skip
    for told in fit.optima:
        axes.plot(told["budget"], told["params"], "D", color=theme.series[1], markersize=6, zorder=5)
        axes.annotate(f"{count(told['params'])}, {count(told['tokens'])} tokens", (told["budget"], told["params"]), (-8, 6),
                      textcoords="offset points", ha="right", fontsize=9, color=theme.ink).set_in_layout(False)  # fmt: skip
    if "flops" in fit.points:
        end = float(fit.points["flops"].max())
        if found["flops"].max() > end * 1.1:
            axes.axvspan(end, found["flops"].max(), color=theme.quiet, alpha=0.08, linewidth=0)
            axes.annotate("beyond the data", (1.0, 0.02), (-4, 0), xycoords="axes fraction", textcoords="offset points",
                          ha="right", fontsize=8.5, color=theme.quiet).set_in_layout(False)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.02)
    powers(axes.xaxis, axes.get_xlim())
    counts(axes.yaxis)
    note = f"band: {100 * fit.level:g} % of {fit.bootstraps} resamples" if "params_low" in found else ""
    title(axes, theme, "best parameters", note)
    axes.set_xlabel("FLOPs", color=theme.quiet)


def _residuals(axes: Axes, fit: Fit, theme: Theme) -> None:
    """How far every run lies from the law, in percent, over compute or over what the law reads."""
    role = next((one for one in ("flops", "tokens", "params", "active") if one in fit.points), "loss")
    x, away = fit.points[role], 100 * (fit.points["loss"] / fit.points["predicted"] - 1)
    spread = float(np.quantile(np.abs(away), 0.95)) * 1.6 or 1e-3
    inside = np.abs(away) <= spread
    axes.axhline(0, color=theme.quiet, linewidth=1)
    axes.plot(x[inside], away[inside], "o", color=theme.series[0], markersize=4, alpha=0.7, markeredgewidth=0)
    for sign, marker in ((1, "^"), (-1, "v")):
        out = ~inside & (np.sign(away) == sign)
        if out.any():  # nothing that is not clipped has a box without end
            axes.plot(
                x[out], np.full(out.sum(), sign * spread), marker, color=theme.series[1], markersize=6, clip_on=False
            )
    axes.set_ylim(-spread * 1.05, spread * 1.05)
    axes.set_xscale("log")
    if role == "flops":
        powers(axes.xaxis, axes.get_xlim())
    else:
        counts(axes.xaxis)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
    outside = int((~inside).sum())
    title(axes, theme, "run minus law", f"{outside} beyond the frame" if outside else "")
    axes.set_xlabel("FLOPs" if role == "flops" else role, color=theme.quiet)


def _against(axes: Axes, fit: Fit, theme: Theme, name: str) -> None:
    """What was measured over what the law says: on the line where both agree."""
    measured, told = fit.against[name]
    ends = (min(measured.min(), told.min()), max(measured.max(), told.max()))
    axes.plot(ends, ends, color=theme.quiet, linewidth=1)
    axes.plot(told, measured, "o", color=theme.series[0], markersize=5, alpha=0.55, markeredgewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        limits = axis.get_view_interval()
        if limits[0] >= 1000:
            counts(axis)
        else:
            powers(axis, (float(limits[0]), float(limits[1])))
    title(axes, theme, name, "near-best runs, over the law")
    axes.set_xlabel("by the law", color=theme.quiet)


def power_text(value: float) -> str:
    """6e18 as 6·10¹⁸."""
    exponent = int(np.floor(np.log10(value) + 1e-9))
    lead = value / 10**exponent
    ten = f"10{str(exponent).translate(_SUPERSCRIPT)}"
    return ten if abs(lead - 1) < 0.005 else f"{lead:.2g}·{ten}"


def powers(axis: Any, limits: tuple[float, float]) -> None:
    """Ticks at powers of ten, at most eight."""
    low, high = np.ceil(np.log10(limits[0])), np.floor(np.log10(limits[1]))
    every = np.arange(low, high + 1)[:: max(1, int((high - low) // 7) + 1)]
    if len(every) < 2:
        middle = np.logspace(np.log10(limits[0]), np.log10(limits[1]), 5)[1:-1]
        axis.set_major_locator(FixedLocator([float(f"{value:.1e}") for value in middle]))
    else:
        axis.set_major_locator(FixedLocator(list(10.0**every)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: power_text(value)))


def counts(axis: Any) -> None:
    """Ticks such as 20M and 100M: a few a decade where there are few decades."""
    limits = axis.get_view_interval()
    decades = np.log10(limits[1] / limits[0])
    leads = (1, 2, 5) if decades < 2.2 else (1, 3) if decades < 3.5 else (1,)
    first, last = int(np.floor(np.log10(limits[0]))), int(np.ceil(np.log10(limits[1])))
    ticks = [lead * 10.0**power for power in range(first, last + 1) for lead in leads]
    axis.set_major_locator(FixedLocator([tick for tick in ticks if limits[0] <= tick <= limits[1]]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value).replace(".00", "").replace(".0", "")))
