"""The picture of block formats: of each figure the worst operand of each role, and which one that is at the end.

Drawn from `formats.jsonl` (launcher/callbacks/formats.py), which a run has where tracker.formats_every_steps asks for it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from launcher.callbacks.formats import FILE_NAME
from launcher.callbacks.metrics import parse_line
from launcher.callbacks.units import count
from launcher.formats import GRADIENT_BIAS, GRADIENT_SNR, LAST_BIN, LAST_BIN_ELSEWHERE
from launcher.report.theme import Theme

ROLES = ("activation", "weight", "gradient")
_PERCENT = 100.0


@dataclass(frozen=True)
class Panel:
    """A figure. worse: what is largest where it is worst; limits: where warnings begin (launcher/formats.py), of the role that
    they are for; shown: which operands are."""

    name: str
    title: str
    worse: Callable[[float], float]
    times: float = 1.0
    role: str = ""
    limits: Callable[[list[dict]], list[float]] = lambda operands: []
    shown: Callable[[dict], bool] = lambda operand: True


def _last_bin_limits(operands: list[dict]) -> list[float]:
    formats = {one["format"] for one in operands if one["role"] == "activation"}
    return sorted({LAST_BIN.get(format, LAST_BIN_ELSEWHERE) for format in formats})


def _not_along_tokens(operand: dict) -> bool:
    """All but activations of the weight gradient, which fill the last bin in healthy runs too (launcher/formats.py)."""
    return operand["role"] != "activation" or operand["product"] != "weight_gradient"


PANELS = (
    Panel("saturated", "saturated blocks, %", float, _PERCENT),
    Panel(
        "last_bin",
        "elements in the last bin, % (of activations forward's)",
        float,
        _PERCENT,
        "activation",
        _last_bin_limits,
        _not_along_tokens,
    ),
    Panel("underflow", "became zero, %", float, _PERCENT),
    Panel("snr", "signal to noise, dB", lambda value: -value, 1.0, "gradient", lambda operands: [GRADIENT_SNR]),
    Panel("bias", "bias, %", abs, _PERCENT, "gradient", lambda operands: [-GRADIENT_BIAS, GRADIENT_BIAS]),
)


def read_formats(directory: Path) -> list[dict]:
    """The lines of a run's formats file, in order of their steps; empty without a file."""
    path = directory / FILE_NAME
    if not path.exists():
        return []
    lines = [parse_line(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {line["step"]: line for line in lines if line and line.get("kind") == "formats" and line.get("operands")}
    return [found[step] for step in sorted(found)]


def formats_picture(lines: list[dict], theme: Theme, kind: Literal["png", "svg"]) -> bytes:
    """lines: of `read_formats`, at least one; kind: svg or png."""
    style: Any = {"font.size": 9, "svg.fonttype": "path", "text.color": theme.ink, "axes.edgecolor": theme.grid}
    style |= {"xtick.color": theme.quiet, "ytick.color": theme.quiet}
    with rc_context(style):
        figure = Figure(figsize=(11, 10), facecolor=theme.paper, layout="constrained")
        grid = figure.subplots(len(PANELS), 1, sharex=True)
        for axes, panel in zip(grid, PANELS, strict=True):
            _draw(axes, panel, lines, theme)
        grid[-1].set_xlabel("tokens", color=theme.quiet)
        figure.legend(handles=_legend(theme), loc="outside upper center", ncols=len(ROLES) + 1, frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format=kind, dpi=130, facecolor=theme.paper)
    return out.getvalue()


def _draw(axes: Axes, panel: Panel, lines: list[dict], theme: Theme) -> None:
    """One figure: the worst operand of each role at each step, and beside the axes its name at the last."""
    axes.set_facecolor(theme.paper)
    named = 0
    for index, role in enumerate(ROLES):
        worst = [(line["tokens"], found) for line in lines if (found := _worst(line["operands"], panel, role))]
        if not worst:
            continue
        tokens, values = [place for place, _ in worst], [found[panel.name] * panel.times for _, found in worst]
        axes.plot(tokens, values, color=theme.series[index], linewidth=1.4, marker="o", markersize=2.5)
        label = _name(worst[-1][1], values[-1])
        place = {"xycoords": "axes fraction", "color": theme.series[index], "fontsize": 7.5, "va": "top"}
        axes.annotate(label, (1.01, 0.98 - 0.34 * named), **place)  # type: ignore[arg-type]
        named += 1
    for limit in panel.limits(lines[-1]["operands"]) if any(_has(line, panel.role) for line in lines) else []:
        axes.axhline(limit * panel.times, color=theme.series[ROLES.index(panel.role)], linewidth=0.8, linestyle=":")
    axes.set_title(panel.title, loc="left", fontsize=9, color=theme.quiet)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.xaxis.set_major_formatter(lambda value, _: count(value) if value > 0 else "0")


def _has(line: dict, role: str) -> bool:
    return any(one["role"] == role for one in line["operands"])


def _worst(operands: list[dict], panel: Panel, role: str) -> dict | None:
    """Of a role, where the figure is known: a ratio to no noise at all is null."""
    known = [one for one in operands if one["role"] == role and one[panel.name] is not None and panel.shown(one)]
    return max(known, key=lambda one: panel.worse(one[panel.name]), default=None)


def _name(operand: dict, value: float) -> str:
    digits = 0 if abs(value) >= 100 else 2 - max(0, math.floor(math.log10(max(abs(value), 1))))
    return f"{value:.{digits}f}  {operand['layer']}\n{operand['product']}, {operand['format']}"


def _legend(theme: Theme) -> list[Line2D]:
    roles = [Line2D([], [], color=theme.series[i], label=f"{role}s, the worst") for i, role in enumerate(ROLES)]
    return [*roles, Line2D([], [], color=theme.quiet, linestyle=":", linewidth=0.8, label="warning (of its colour)")]
