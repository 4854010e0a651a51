"""Curves of all runs of a sweep in one frame: training loss over compute where runs differ in what a token costs, else over
tokens; a colour for each label of the compared axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from launcher.callbacks.units import count
from launcher.report.canvas import file_of, in_style, title
from launcher.report.collect import Run
from launcher.report.curves import smooth, thin
from launcher.report.theme import Theme

_MOST_POINTS = 300  # of a curve: there are many
_SKIPPED = 0.03  # share of a curve at its start that sets no limit of the frame


@dataclass(frozen=True)
class Member:
    """A run of a sweep that has a curve. labels: by axis; flops_per_token: what a token costs; done: whether it has ended."""

    run: Run
    labels: Mapping[str, str]
    flops_per_token: float
    done: bool


def family_picture(members: Sequence[Member], compared: str, theme: Theme, form: Literal["png", "svg"]) -> bytes:
    """Smoothed curves with the last validation loss as a dot at their end."""
    labels = list(dict.fromkeys(member.labels[compared] for member in members))
    costs = {member.flops_per_token for member in members}
    with in_style(theme):
        figure = Figure(figsize=(11.0, 5.6), layout="constrained")
        axes = figure.subplots()
        heights: list[float] = []
        for member in members:
            pen = theme.pen(labels.index(member.labels[compared]))
            places = thin(member.run.tokens, _MOST_POINTS) * (member.flops_per_token if len(costs) > 1 else 1.0)
            losses = smooth(thin(member.run.column("loss"), _MOST_POINTS))
            axes.plot(places, losses, color=pen.colour, linestyle=pen.dashes, linewidth=1.5, alpha=0.85)
            known = losses[int(_SKIPPED * len(losses)) :]
            heights.extend(known[np.isfinite(known)])
            if member.done and (last := member.run.validation_loss) is not None:
                axes.plot([places[-1]], [last], "o", color=pen.colour, markersize=5, zorder=4, clip_on=False)
                heights.append(last)
        for index, label in enumerate(labels):
            pen = theme.pen(index)
            axes.plot([], [], color=pen.colour, linestyle=pen.dashes, linewidth=2, label=label)
        title(axes, theme, "loss, nats per token", "lines: training, smoothed; dots: validation at the end")
        if heights:
            margin = 0.04 * (max(heights) - min(heights)) or 0.1
            axes.set_ylim(min(heights) - margin, max(heights) + margin)
        axes.set_xscale("log")
        axes.set_xlabel("FLOP" if len(costs) > 1 else "tokens", color=theme.quiet)
        if len(costs) == 1:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
        legend = axes.legend(title=compared, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9.5)
        legend.get_title().set_color(theme.quiet)
        for text in legend.get_texts():
            text.set_color(theme.quiet)
        return file_of(figure, theme, form)
