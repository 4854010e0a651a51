"""The picture of a mixture's routing: how much of the work each expert of each layer took, and what was dropped where.

Drawn from `routing.jsonl` (launcher/callbacks/routing.py); a model without experts has no such file, and no picture.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from launcher.callbacks.metrics import parse_line
from launcher.callbacks.routing import FILE_NAME
from launcher.callbacks.units import count
from launcher.report.theme import Theme

MOST_LAYERS = 12  # of deeper models, as many are drawn, evenly chosen
MOST_COLUMNS = 400  # steps in a row of colours; neighbours are averaged beyond
_SPAN = 2.0  # colours end at four times and a quarter of the even share


def read_routing(directory: Path) -> list[dict]:
    """The lines of a run's routing file, in order of their steps; empty without a file."""
    path = directory / FILE_NAME
    if not path.exists():
        return []
    lines = [parse_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line for line in lines if line and line.get("kind") == "routing" and line.get("layers")}
    ordered = [found[step] for step in sorted(found)]
    # phases may change the number of experts: the last kind of model is drawn
    return [line for line in ordered if _shape(line) == _shape(ordered[-1])]


def _shape(line: dict) -> tuple[int, int]:
    """Layers with experts, and experts."""
    return len(line["layers"]), len(line["layers"][0]["load"])


def routing_picture(lines: list[dict], theme: Theme, kind: Literal["png", "svg"]) -> bytes:
    """lines: of `read_routing`, at least one; kind: svg or png."""
    layers = len(lines[0]["layers"])
    shown = sorted({round(index) for index in np.linspace(0, layers - 1, min(layers, MOST_LAYERS))})
    drops = any(line["layers"][index]["drop_share"] > 0 for line in lines for index in range(layers))
    style: Any = {"font.size": 9, "svg.fonttype": "path", "text.color": theme.ink, "axes.edgecolor": theme.grid}
    style |= {"xtick.color": theme.quiet, "ytick.color": theme.quiet}
    with rc_context(style):
        figure = Figure(figsize=(11, 0.9 + 1.25 * len(shown)), facecolor=theme.paper, layout="constrained")
        ratios = (4, 1) if drops else (1,)
        grid = figure.subplots(len(shown), len(ratios), squeeze=False, width_ratios=ratios)
        colours = LinearSegmentedColormap.from_list("load", [theme.series[1], theme.paper, theme.series[0]])
        scale = Normalize(-_SPAN, _SPAN)
        for row, index in enumerate(shown):
            last = row == len(shown) - 1
            _draw_load(grid[row][0], lines, index, colours, scale, theme, last)
            if drops:
                _draw_drops(grid[row][1], lines[-1]["layers"][index]["dropped"], theme, row == 0, last)
        bar = figure.colorbar(
            grid[0][0].images[0],
            ax=list(grid[:, 0]),
            ticks=range(-2, 3),
            location="top",
            aspect=60,
            shrink=0.5,
            pad=0.02,
        )
        bar.ax.set_xticklabels(["¼ or less", "½", "even", "2 ×", "4 × or more"])
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.set_label("an expert's share of all choices, beside the even share", color=theme.quiet)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=130, facecolor=theme.paper)
    return out.getvalue()


def _draw_load(
    axes: Axes,
    lines: list[dict],
    index: int,
    colours: LinearSegmentedColormap,
    scale: Normalize,
    theme: Theme,
    last: bool,
) -> None:
    load = np.array([line["layers"][index]["load"] for line in lines]).T  # [experts, times]
    experts, times = load.shape
    tokens = np.array([line["tokens"] for line in lines], dtype=float)
    width = -(-times // MOST_COLUMNS)
    columns = np.stack([load[:, start : start + width].mean(1) for start in range(0, times, width)], axis=1)
    relative = np.log2(np.maximum(columns * experts, 2.0 ** -(2 * _SPAN)))
    step = tokens[0] if times == 1 else tokens[-1] / times
    axes.imshow(
        relative,
        aspect="auto",
        cmap=colours,
        norm=scale,
        interpolation="nearest",
        extent=(tokens[0] - step, tokens[-1], experts, 0),
    )
    axes.set_ylabel(f"layer {lines[0]['layers'][index]['layer']}", color=theme.ink)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(length=0, labelbottom=last)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(lambda value, _: count(value) if value > 0 else "0")
    if last:
        axes.set_xlabel("tokens (across), experts (down)", color=theme.quiet)


def _draw_drops(axes: Axes, dropped: list[float], theme: Theme, first: bool, last: bool) -> None:
    edges = np.linspace(0, 100, len(dropped) + 1)
    axes.stairs(np.array(dropped) * 100, edges, fill=True, color=theme.series[1], alpha=0.85)
    axes.set_xlim(0, 100)
    axes.set_ylim(0, max(5.0, 110 * max(dropped)))
    axes.tick_params(length=0, labelbottom=last)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.set_facecolor(theme.paper)
    if first:
        axes.set_title("dropped, %", fontsize=9, color=theme.quiet)
    if last:
        axes.set_xlabel("position in the sequence, %", color=theme.quiet)
