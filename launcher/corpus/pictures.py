"""The pictures of `triaxis data stats`: what the corpus holds, its signals, and what cleaning left of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from launcher.callbacks.units import count
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme

MOST_BARS = 12
MOST_SIGNALS = 36
_WIDTH = 11.0


def pictures(found: dict[str, Any], theme: Theme = LIGHT) -> dict[str, bytes]:
    """PNGs by name: always `overview`; `signals` and `cleaning` where there is something to draw."""
    drawn = {"overview": _overview(found, theme)}
    signals = {name: about for name, about in found["signals"].items() if about["known"]}
    if signals:
        drawn["signals"] = _signals(found, signals, theme)
    if found.get("cleaning"):
        drawn["cleaning"] = _cleaning(found, theme)
    return drawn


def _overview(found: dict[str, Any], theme: Theme) -> bytes:
    words = {name: about for name, about in found["words"].items() if about.get("most")}
    lists = [len(found["sources"]), *(len(about["most"]) for about in words.values())]
    longest = [lists[0], *(max(lists[place : place + 2]) for place in range(1, len(lists), 2))]  # of each row of panels
    heights = [3.4, *(0.55 + 0.5 * min(MOST_BARS, bars) for bars in longest)]
    with in_style(theme):
        figure = Figure(figsize=(_WIDTH, 0.5 + sum(heights)), layout="constrained")
        _head(figure, found, theme)
        panels = list(figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights).flat)
        _lengths(panels[0], found, theme)
        _frequencies(panels[1], found["frequencies"], theme)
        bars = [(one["source"], one["tokens"], count(one["tokens"])) for one in found["sources"]]
        _bars(panels[2], bars, theme, theme.series[0], "tokens by source")
        rates = [(one["source"], one["bytes_per_token"], f"{one['bytes_per_token']:.2f}") for one in found["sources"]]
        _bars(panels[3], rates, theme, theme.series[2], "bytes a token by source")
        for axes, (name, about) in zip(panels[4:], words.items(), strict=False):
            bars = [(one["value"], one["tokens"], count(one["tokens"])) for one in about["most"]]
            _bars(axes, bars, theme, theme.series[3], f"tokens by {name}", f"{about['different']:,} different")
        for axes in panels[4 + len(words) :]:
            axes.set_visible(False)
        return file_of(figure, theme, "png")


def _head(figure: Figure, found: dict[str, Any], theme: Theme) -> None:
    told = f"{found['documents']:,} documents  ·  {count(found['tokens'])} tokens  ·  {found['bytes'] / 1e6:,.1f} MB"
    figure.suptitle(f"{found['corpus']}, {found['split']}", x=0.01, ha="left", fontsize=15, fontweight="bold")
    figure.text(0.99, 0.985, told, ha="right", va="top", color=theme.quiet, fontsize=10.5)


def _lengths(axes: Axes, found: dict[str, Any], theme: Theme) -> None:
    """Where documents are, and where tokens are: a few long ones may be most of the text."""
    about = found["lengths"]
    edges = np.array(about["edges"])
    for values, colour, name in (
        (about["counts"], theme.series[0], "documents"),
        (about["weights"], theme.series[1], "tokens"),
    ):
        share = 100 * np.array(values) / max(1, sum(values))
        axes.stairs(share, edges, color=colour, linewidth=1.8, label=name)
        axes.stairs(share, edges, color=colour, fill=True, alpha=0.12)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _two(value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    legend = axes.legend(frameon=False, loc="upper left", handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(theme.quiet)
    title(axes, theme, "tokens a document", f"median {about['quantiles']['0.5']:,.0f}, mean {about['mean']:,.0f}")


def _two(value: float) -> str:
    """A power of two as people say it: 512, 4k, 1M."""
    for power, prefix in ((20, "M"), (10, "k")):
        if value >= 1 << power:
            return f"{value / (1 << power):g}{prefix}"
    return f"{value:g}"


def _frequencies(axes: Axes, about: dict[str, Any], theme: Theme) -> None:
    """Zipf's law is a straight line here; a tail that falls off is vocabulary that earns nothing."""
    ranks, curve = np.array(about["ranks"], float), np.array(about["curve"], float) / max(1, about["counted"])
    axes.plot(ranks, curve, color=theme.series[0], linewidth=2)
    axes.plot(ranks, curve[0] / ranks, color=theme.quiet, linewidth=1, linestyle=(0, (5, 3)))
    middle = float(np.sqrt(ranks[-1]))
    axes.annotate("1 / rank", (middle, curve[0] / middle), xytext=(-6, -4), textcoords="offset points", ha="right",
                  va="top", color=theme.quiet, fontsize=9.5)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(max(curve[-1] * 0.5, 1e-12), curve[0] * 2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    note = f"{about['never_used']:,} of {about['vocabulary']:,} ids never used"
    title(axes, theme, "share of a token by its rank", note)


def _bars(axes: Axes, bars: list[tuple[str, float, str]], theme: Theme, colour: str, name: str, note: str = "") -> None:
    """Bars that are named and told, largest above; what does not fit is one bar of the rest."""
    shown = bars[:MOST_BARS]
    if len(bars) > MOST_BARS:
        note = note or f"the largest {MOST_BARS} of {len(bars)}"
    largest = max([value for _, value, _ in shown], default=1) or 1
    for place, (label, value, told) in enumerate(shown):
        axes.barh(place, value, color=colour, alpha=0.85, height=0.4)
        axes.text(0, place - 0.26, _clipped(label), fontsize=9.5, color=theme.ink)
        axes.text(value + 0.012 * largest, place, told, va="center", fontsize=9.5, color=theme.quiet)
    axes.set_ylim(len(shown) - 0.6, -0.7)
    axes.set_xlim(0, 1.15 * largest)
    axes.xaxis.set_major_locator(NullLocator())
    axes.yaxis.set_major_locator(NullLocator())
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    title(axes, theme, name, note)


def _clipped(label: str, most: int = 60) -> str:
    label = label.replace("$", r"\$")
    return label if len(label) <= most else "…" + label[-most + 1 :]


def _signals(found: dict[str, Any], signals: dict[str, Any], theme: Theme) -> bytes:
    shown = list(signals.items())[:MOST_SIGNALS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with in_style(theme):
        figure = Figure(figsize=(_WIDTH, 0.7 + 1.9 * rows), layout="constrained")
        _head(figure, found, theme)
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, (name, about) in zip(panels, shown, strict=False):
            axes.stairs(about["counts"], about["edges"], fill=True, color=theme.series[0], alpha=0.8)
            axes.set_ylim(0, 1.25 * max(about["counts"]))
            axes.axvline(about["quantiles"]["0.5"], color=theme.series[1], linewidth=1.4)
            axes.yaxis.set_major_locator(NullLocator())
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.spines["left"].set_visible(False)
            title(axes, theme, _clipped(name, 24))
            missing = f", {about['missing']:,} without" if about["missing"] else ""
            note = f"median {about['quantiles']['0.5']:.3g}{missing}"
            axes.text(1, 0.98, note, transform=axes.transAxes, ha="right", va="top", fontsize=8.5, color=theme.quiet)
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        return file_of(figure, theme, "png")


def _cleaning(found: dict[str, Any], theme: Theme) -> bytes:
    """A waterfall: what each step was given, and which share of it it left, by reason of what it dropped."""
    steps = found["cleaning"]
    reasons = list(dict.fromkeys(reason for step in steps for reason in step["reasons"]))
    colours = {reason: theme.series[1 + place % (len(theme.series) - 1)] for place, reason in enumerate(reasons)}
    with in_style(theme):
        figure = Figure(figsize=(_WIDTH, 1.3 + 0.52 * (len(steps) + 1)), layout="constrained")
        axes = figure.subplots()
        first = max(1, steps[0]["before"])
        rows = [("read", steps[0]["before"], {}), *((step["step"], step["after"], step["reasons"]) for step in steps)]
        for place, (_, left, dropped) in enumerate(rows):
            axes.barh(place, left, color=theme.series[0], alpha=0.85, height=0.62)
            at = left
            for reason, number in sorted(dropped.items(), key=lambda pair: -pair[1]):
                axes.barh(place, number, left=at, color=colours[reason], alpha=0.85, height=0.62)
                at += number
            largest = max(dropped, key=lambda reason: dropped[reason]) if dropped else ""
            told = f"{left:,}  ({100 * left / first:.1f} %)" + (f"   −{at - left:,}: {largest}" if dropped else "")
            told += " and others" if len(dropped) > 1 else ""
            axes.text(at + 0.008 * first, place, told.replace("$", r"\$"), va="center", fontsize=9, color=theme.quiet)
        axes.set_yticks(range(len(rows)), [_clipped(name, 26) for name, _, _ in rows], color=theme.ink)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.5 * first)
        axes.xaxis.set_major_locator(NullLocator())
        axes.grid(visible=False)
        axes.spines[["left", "bottom"]].set_visible(False)
        title(axes, theme, f"{found['corpus']}: documents after each step of cleaning")
        return file_of(figure, theme, "png")
