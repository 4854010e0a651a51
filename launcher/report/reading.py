"""The picture of what a run read: shares of its sources, lengths of sequences and sizes of batches, against tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from launcher.callbacks.units import count
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import Theme

MOST_COLUMNS = 300
"""Stretches of a run that shares are drawn of; shorter ones are added up."""

Steps = Sequence[dict[str, Any]]


def is_worth_drawing(steps: Steps) -> bool:
    """Whether anything about the reading changes or is mixed."""
    return any(step.get("drawn") for step in steps) or bool(_moving(steps))


def reading_picture(steps: Steps, theme: Theme, form: Literal["png", "svg"]) -> bytes:
    """steps: records of the kind `step`, in order; `is_worth_drawing` of them."""
    names = list(dict.fromkeys(name for step in steps for name in step.get("drawn", {})))
    moving = _moving(steps)
    rows = (2.4,) * bool(names) + (1.0,) * len(moving)
    with in_style(theme):
        figure = Figure(figsize=(11, 0.8 + 1.35 * sum(rows)), layout="constrained")
        panels = list(figure.subplots(len(rows), 1, squeeze=False, sharex=True, height_ratios=rows)[:, 0])
        tokens = np.array([step["tokens"] for step in steps], float)
        if names:
            _draw_shares(panels.pop(0), steps, tokens, names, theme)
        for panel, (field, text) in zip(panels, moving, strict=True):
            values = np.array([step[field] for step in steps], float)
            panel.step(tokens, values, where="pre", color=theme.series[0], linewidth=1.6)
            title(panel, theme, text, f"{count(int(values[0]))} to {count(int(values[-1]))}")
            panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            panel.yaxis.set_major_formatter(lambda value, _: count(int(value)))
            panel.set_ylim(0, 1.15 * values.max())
        last = figure.axes[-1]
        last.xaxis.set_major_formatter(lambda value, _: count(int(value)) if value > 0 else "0")
        last.set_xlabel("tokens", color=theme.quiet)
        return file_of(figure, theme, form)


def _moving(steps: Steps) -> list[tuple[str, str]]:
    """Fields that change, with their titles."""
    fields = {"sequence_length": "Tokens of a sequence", "batch_tokens": "Tokens of a batch"}
    return [(name, text) for name, text in fields.items() if len({step.get(name) for step in steps}) > 1]


def _draw_shares(axes: Axes, steps: Steps, tokens: np.ndarray, names: list[str], theme: Theme) -> None:
    drawn = np.array(
        [[step.get("drawn", {}).get(name, 0) for name in names] for step in steps], float
    )  # [steps, sources]
    width = -(-len(steps) // MOST_COLUMNS)
    edges = np.arange(0, len(steps), width)
    sums = np.add.reduceat(drawn, edges)
    shares = 100 * sums / np.maximum(sums.sum(1, keepdims=True), 1)
    ends = tokens[np.minimum(edges + width, len(steps)) - 1]
    axes.stackplot(
        np.concatenate([[tokens[0] - steps[0]["batch_tokens"]], ends]),
        np.concatenate([shares[:1], shares]).T,
        step="pre",
        colors=[theme.pen(index).colour for index in range(len(names))],
        alpha=0.85,
        linewidth=0,
    )
    total = drawn.sum(0)
    axes.legend(
        [
            f"{name}  {100 * part / total.sum():.1f} %, {count(int(part))} tokens"
            for name, part in zip(names, total, strict=True)
        ],
        loc="upper left",
        bbox_to_anchor=(1.005, 1),
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.ink,
    )
    axes.set_ylim(0, 100)
    axes.set_xlim(tokens[0] - steps[0]["batch_tokens"], tokens[-1])
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    title(axes, theme, "What was drawn", "share of each source")
