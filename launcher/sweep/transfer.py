"""`triaxis sweep transfer DIR [--out FILE] [--json FILE]`: where the best learning rate lies at every width of a sweep.

The sweep has the axes `width`, `optimizer.learning_rate` and, for curves side by side, `kind`, as experiment=mup_transfer does.
The best rate is at the bottom of the parabola through the lowest loss and its two neighbours, over log2 of the rate.
Its drift is the slope of log2(best rate) over log2(width): 0 where it stays put, -1 where it halves with each doubling.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.sweep.config import SweepError
from launcher.sweep.store import Row, Store
from launcher.terminal import new_table, open_console

RATE, WIDTH, KIND = "optimizer.learning_rate", "width", "kind"
Curve = dict[float, float]
"""Loss by learning rate."""


@dataclass(frozen=True)
class Optimum:
    """Where a curve is lowest. edge: at the end of what was tried, so that the best may lie beyond it."""

    rate: float
    loss: float
    edge: bool


@dataclass(frozen=True)
class Transfer:
    """Curves by kind and width, means over whatever else the sweep repeats. metric: what they are of."""

    name: str
    metric: str
    curves: dict[str, dict[int, Curve]]

    def optimum(self, kind: str, width: int) -> Optimum:
        """The best learning rate of a width."""
        return lowest(self.curves[kind][width])

    def drift(self, kind: str) -> float | None:
        """Slope of log2(best rate) over log2(width); None where fewer than two widths have their best between others."""
        found = {width: self.optimum(kind, width) for width in self.curves[kind]}
        inside = {width: best for width, best in found.items() if not best.edge}
        if len(inside) < 2:
            return None
        rates = [math.log2(best.rate) for best in inside.values()]
        return statistics.linear_regression([math.log2(width) for width in inside], rates).slope


def transfer_of(name: str, metric: str, rows: Sequence[Row]) -> Transfer:
    """Curves of the rows that are done. SweepError where the axes are others, or no curve has three points."""
    found: dict[str, dict[int, dict[float, list[float]]]] = {}
    for row in rows:
        if missing := [axis for axis in (RATE, WIDTH) if axis not in row.labels]:
            raise SweepError(
                f"sweep.axes: {name} has no axis {missing[0]}; a transfer is read off the axes {WIDTH} and {RATE}, as those of "
                "experiment=mup_transfer"
            )
        value = row.figures.get(metric) if row.state == "done" else None
        if value is not None and math.isfinite(float(value)):
            widths = found.setdefault(row.labels.get(KIND, "all"), {})
            rates = widths.setdefault(_number(WIDTH, row.labels[WIDTH]), {})
            rates.setdefault(float(row.labels[RATE]), []).append(float(value))
    curves = {
        kind: {
            width: {rate: statistics.fmean(rates[rate]) for rate in sorted(rates)}
            for width, rates in sorted(widths.items())
            if len(rates) > 2
        }
        for kind, widths in found.items()
    }
    if not any(curves.values()):
        raise SweepError(
            f"sweep transfer: no width of {name} has three learning rates that are done; let `triaxis sweep` go on"
        )
    return Transfer(name, metric, {kind: widths for kind, widths in curves.items() if widths})


def _number(axis: str, label: str) -> int:
    if not label.isdigit():
        raise SweepError(f"sweep.axes.{axis}.{label}: a transfer needs widths as labels, such as 64")
    return int(label)


def lowest(curve: Curve) -> Optimum:
    """The bottom of the parabola through the lowest point and its neighbours, in log2 of the rate."""
    rates = list(curve)
    best = min(range(len(rates)), key=lambda index: curve[rates[index]])
    if best in (0, len(rates) - 1):
        return Optimum(rates[best], curve[rates[best]], True)
    x0, x1, x2 = (math.log2(rates[best + step]) for step in (-1, 0, 1))
    y0, y1, y2 = (curve[rates[best + step]] for step in (-1, 0, 1))
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    if bend == 0:  # three equal losses
        return Optimum(rates[best], y1, False)
    place = (x0 + x1) / 2 - left / (2 * bend)
    loss = y0 + left * (place - x0) + bend * (place - x0) * (place - x1)
    return Optimum(2**place, loss, False)


def as_json(transfer: Transfer) -> dict[str, Any]:
    """Plain data."""
    return {
        "sweep": transfer.name,
        "metric": transfer.metric,
        "kinds": {
            kind: {
                "drift": transfer.drift(kind),
                "widths": {
                    str(width): {
                        **vars(transfer.optimum(kind, width)),
                        "curve": {f"{r:g}": y for r, y in curve.items()},
                    }
                    for width, curve in widths.items()
                },
            }
            for kind, widths in transfer.curves.items()
        },
    }


def transfer_command(arguments: list[str]) -> int:
    """`triaxis sweep transfer DIR [--out FILE] [--json FILE]`."""
    from launcher.options import parse
    from launcher.sweep.transfer_picture import picture

    places, values = parse(
        arguments, {"out": str, "json": str}, "triaxis sweep transfer sweeps/mup_transfer [--out FILE] [--json FILE]"
    )
    if len(places) != 1:
        raise SweepError("sweep transfer: takes one directory of a sweep: `triaxis sweep transfer sweeps/mup_transfer`")
    store = Store(Path(places[0]))
    told = store.description()
    transfer = transfer_of(told["name"], told["metric"], store.rows())
    show(transfer, open_console(soft_wrap=True))
    path = Path(values.get("out", store.directory / "transfer.png"))
    path.write_bytes(picture(transfer))
    if "json" in values:
        Path(values["json"]).write_text(json.dumps(as_json(transfer), indent=1) + "\n")
    print(path)
    return 0


def show(transfer: Transfer, console: Console) -> None:
    """The best learning rates as a table."""
    widths = sorted({width for curves in transfer.curves.values() for width in curves})
    table = new_table("Best learning rate by width", "", *map(str, widths), "drift")
    for kind, curves in transfer.curves.items():
        drift = transfer.drift(kind)
        cells = [_cell(transfer.optimum(kind, width)) if width in curves else "" for width in widths]
        table.add_row(kind, *cells, "" if drift is None else f"{drift:+.2f}")
        losses = [f"{transfer.optimum(kind, width).loss:.3f}" if width in curves else "" for width in widths]
        table.add_row(f"  {transfer.metric.replace('_', ' ')} there", *losses, "")
    console.print(table)
    console.print("drift: slope of log2(best rate) over log2(width); *: at the end of what was tried, not counted")


def _cell(best: Optimum) -> str:
    return f"{best.rate:.2g}" + ("*" if best.edge else "")
