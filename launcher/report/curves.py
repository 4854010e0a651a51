"""Curves: thinned, smoothed and drawn, measured values light and smoothed ones strong."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from launcher.report.collect import Run
from launcher.report.theme import Pen

_MOST_POINTS = 2000  # a curve of more is drawn as the means of this many bins: the picture has no more columns


def smooth(values: np.ndarray) -> np.ndarray:
    """A Gaussian mean over about a hundredth of the curve: passes over NaN and, unlike a running mean, doesn't lag."""
    width = min(max(1.0, len(values) / 100), 2 + len(values) / 250)
    reach = int(np.ceil(3 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    known = np.isfinite(values)
    total = np.convolve(np.where(known, values, 0.0), kernel)[reach : reach + len(values)]
    weight = np.convolve(known.astype(float), kernel)[reach : reach + len(values)]
    near = weight > 0.1  # a single NaN, as a skipped step has, leaves no hole
    return np.where(near, total / np.where(near, weight, 1.0), np.nan)


def thin(values: np.ndarray, most: int = _MOST_POINTS) -> np.ndarray:
    """At most `most` values: the means of equal bins, NaN apart."""
    if len(values) <= most:
        return values
    edges = np.linspace(0, len(values), most + 1).astype(int)[:-1]
    known = np.isfinite(values)
    total = np.add.reduceat(np.where(known, values, 0.0), edges)
    weight = np.add.reduceat(known.astype(float), edges)
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), np.nan)


def draw_curve(axes: Axes, run: Run, name: str, pen: Pen, raw: float) -> np.ndarray:
    """Draw one quantity, measured (with the opacity `raw`) and smoothed, and return the smoothed one."""
    tokens, values = thin(run.tokens), thin(run.column(name))
    if name == "grad_norm":
        values = np.where(values > 0, values, np.nan)
    if name == "learning_rate":  # exact, not measured: nothing to smooth
        axes.plot(tokens, values, color=pen.colour, linestyle=pen.dashes, linewidth=1.8, marker=_dot(values))
        return values
    smoothed = np.exp(smooth(np.log(values))) if name == "grad_norm" else smooth(values)
    if raw:
        axes.plot(tokens, values, color=pen.colour, linewidth=0.8, alpha=raw, zorder=2)
    axes.plot(tokens, smoothed, color=pen.colour, linestyle=pen.dashes, linewidth=2.0, zorder=3,
              solid_capstyle="round", marker=_dot(smoothed))  # fmt: skip
    return smoothed


def _dot(values: np.ndarray) -> str:
    return "o" if len(values) == 1 else ""  # a line through one point is not seen
