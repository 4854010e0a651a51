"""What every picture of the house has in common: its style, and how it becomes a file."""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launcher.report.theme import Theme


def style_of(theme: Theme) -> Any:
    """matplotlib's settings for a theme; to be in force while a figure is made and saved."""
    return {
        "font.size": 10.5,
        "axes.facecolor": "none",
        "axes.edgecolor": theme.grid,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "text.color": theme.ink,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.quiet,
        "ytick.labelcolor": theme.quiet,
        "svg.hashsalt": "triaxis",  # equal runs give equal files
    }


def in_style(theme: Theme) -> Any:
    """A context in which figures look like the house's."""
    return matplotlib.rc_context(style_of(theme))


def file_of(figure: Figure, theme: Theme, form: Literal["png", "svg"]) -> bytes:
    """A figure as a file without a date. A PNG has the theme's paper, an SVG that of the page it lies in."""
    target = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    paper = theme.paper if form == "png" else "none"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names from corpora may be in any script
        figure.savefig(target, format=form, dpi=150, facecolor=paper, metadata=metadata)
    return target.getvalue()


def title(axes: Axes, theme: Theme, text: str, note: str = "") -> None:
    """The name of a panel, and quieter what is to be known of it; and ticks without marks."""
    axes.set_title(text, loc="left", fontsize=10.5, fontweight="bold", color=theme.ink, pad=9)
    if note:
        axes.set_title(note, loc="right", fontsize=9.5, color=theme.quiet, pad=9)
    axes.tick_params(length=0, which="both", pad=5)
    axes.set_axisbelow(True)
