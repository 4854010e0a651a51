"""The picture: a bar for each kernel, pass and implementation, as a share of what the device can do, and the goal as a line."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from launcher.bench.kernels.show import WAYS
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme

_WIDTH, _BAR = 11.0, 0.17  # inches; of a bar also the height


def picture(figures: dict[str, Any], theme: Theme = LIGHT) -> bytes:
    """A PNG with a panel for each size."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in figures["kernels"]:
        groups.setdefault(one["sizes"], []).append(one)
    heights = [0.5 + sum(0.25 + _BAR * len(one["shares"]) for one in rows) for rows in groups.values()]
    with in_style(theme):
        figure = Figure(figsize=(_WIDTH, 1.0 + sum(heights)), layout="constrained")
        told = f"{figures['device']}, {figures['dtype']}, {figures['date']}"
        figure.suptitle(f"Fused kernels: {told}", x=0.01, ha="left", fontsize=15, fontweight="bold")
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (sizes, rows) in zip(panels, groups.items(), strict=True):
            _panel(axes, sizes, rows, theme)
            rates = (
                f"copies {figures['copy_rate'] / 1e9:,.0f} GB/s, products {figures['product_rate'] / 1e12:,.1f} TFLOP/s"
            )
            title(axes, theme, f"{sizes} sizes, share of the copy or the product rate", rates)
        return file_of(figure, theme, "png")


def _panel(axes: Axes, sizes: str, rows: list[dict[str, Any]], theme: Theme) -> None:
    colours = dict(zip(WAYS, theme.series, strict=False))
    at, ticks, known = 0.0, [], set()
    for one in rows:
        begin = at
        for way in WAYS:
            if way not in one["shares"]:
                continue
            share = one["shares"][way]
            axes.barh(at, share, height=0.85 * _BAR, color=colours[way], label=None if way in known else way)
            axes.text(share + 0.01, at, f"{share:.0%}", va="center", fontsize=7.5, color=theme.quiet)
            known.add(way)
            at += _BAR
        if one["goal"] is not None:
            axes.plot([one["goal"]] * 2, [begin - _BAR, at], color=theme.ink, linewidth=1.4)
        ticks.append(((begin + at - _BAR) / 2, f"{one['kernel']} {one['pass']}"))
        at += 0.25
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(at, -0.25)
    axes.set_xlim(0, max(1.1, 1.1 * max(share for one in rows for share in one["shares"].values())))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.grid(visible=False, axis="y")
    legend = axes.legend(frameon=False, loc="lower right", handlelength=1.2)
    for text in legend.get_texts():
        text.set_color(theme.quiet)
