"""The picture of a transfer: loss over learning rate, a curve a width, kinds side by side, a star for the best."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme
from launcher.sweep.transfer import Transfer


def picture(transfer: Transfer, theme: Theme = LIGHT) -> bytes:
    """A PNG with a panel for each kind."""
    kinds = list(transfer.curves)
    widths = sorted({width for curves in transfer.curves.values() for width in curves})
    rates = sorted({rate for curves in transfer.curves.values() for curve in curves.values() for rate in curve})
    with in_style(theme):
        figure = Figure(figsize=(5.2 * len(kinds) + 1.0, 4.6), layout="constrained")
        told = f"{transfer.name}: {transfer.metric.replace('_', ' ')} by learning rate"
        figure.suptitle(told, x=0.01, ha="left", fontsize=13, fontweight="bold")
        panels = figure.subplots(1, len(kinds), squeeze=False, sharex=True, sharey=True)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _panel(axes, transfer, kind, widths, theme)
            drift = transfer.drift(kind)
            title(axes, theme, kind, "" if drift is None else f"drift of the best {drift:+.2f}")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(rates))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.tick_params(axis="x", labelsize=9)
            axes.set_xlabel("learning rate", color=theme.quiet)
        panels[0].set_ylabel(transfer.metric.replace("_", " "), color=theme.quiet)
        handles, names = panels[0].get_legend_handles_labels()
        legend = figure.legend(handles, names, loc="outside right center", frameon=False)
        for text in legend.get_texts():
            text.set_color(theme.quiet)
        return file_of(figure, theme, "png")


def _panel(axes: Axes, transfer: Transfer, kind: str, widths: list[int], theme: Theme) -> None:
    for index, width in enumerate(widths):
        curve = transfer.curves[kind].get(width, {})
        pen = theme.pen(index)
        axes.plot(list(curve), list(curve.values()), "o-", color=pen.colour, markersize=4, label=f"width {width}")
        if curve:
            best = transfer.optimum(kind, width)
            filled = "none" if best.edge else "full"
            axes.plot([best.rate], [best.loss], "*", color=pen.colour, markersize=13, fillstyle=filled)
