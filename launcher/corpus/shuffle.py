"""`triaxis data stats --shuffle`: how well each way of shuffling mixes a corpus, beside a perfect shuffle."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, MaxNLocator
from rich.console import Console

from data.config import DataError
from data.corpus import Corpus
from data.documents import Documents
from data.order import key
from data.plan import PlanSpec
from data.shuffle_quality import MEANINGS, Figure, Groups, buffered, drawn, measure
from data.source import Source
from launcher.corpus.order import progress_bar
from launcher.report.canvas import file_of, in_style, title
from launcher.report.theme import LIGHT, Theme

if TYPE_CHECKING:
    from launcher.corpus.stats import StatsConfig

GOOD = 4.0  # standard deviations: among some dozens of figures of a perfect shuffle none is expected beyond
AS_STORED = "as stored"
_DOTS = 4000
_MOST_Z = 1e4


def shuffle_command(console: Console, corpus: Path, out: Path, config: StatsConfig) -> int:
    """Measure, write, draw, print."""
    from launcher.corpus.stats import write_files

    size, orders, groups = _orders(corpus, config)
    measured = {}
    with progress_bar(console, "shuffles") as progress:
        for place, (name, order) in enumerate(orders.items()):
            progress(place, len(orders), name)
            measured[name] = measure(order, size, config.batch, groups)
    files = {"shuffle.png": _picture(corpus, config, size, orders, measured)}
    told = {
        name: {figure: {**asdict(about), "z": _finite(about.z)} for figure, about in one.items()}
        for name, one in measured.items()
    }
    files["shuffle.json"] = (
        json.dumps({"units": size, "batch": config.batch, "orders": told}, indent=1) + "\n"
    ).encode()
    written = write_files(out, files)
    _tell(console, size, config, measured)
    console.print("\n" + "  ".join(map(str, written)))
    return 0


def _orders(corpus: Path, config: StatsConfig) -> tuple[int, dict[str, np.ndarray], Groups]:
    """(units of an epoch, where in the corpus each way of shuffling has its samples, what units belong to)."""
    opened, spec = Corpus(corpus, config.split), PlanSpec("cut", config.sequence_length)
    names = {"global": "global", "window": f"window of {config.window}", "none": AS_STORED}
    sources = {
        name: Source(opened, spec, config.seed, shuffle=way, window=config.window) for way, name in names.items()
    }
    size = sources[AS_STORED].units
    count = min(config.samples, size)
    if count < 2 * config.batch:
        raise DataError(
            f"--batch={config.batch}: {config.split} has {size:,} samples of {config.sequence_length:,} tokens and at most "
            f"{config.samples:,} are looked at; two batches are needed: lower --batch or --sequence-length"
        )
    found = {"perfect": drawn(size, count, key("perfect", config.seed))}
    found |= {way: source.order(0, np.arange(count)) for way, source in sources.items()}
    units = np.searchsorted(opened.shard_starts[:-1], np.arange(size) * config.sequence_length, side="right")
    shards = np.bincount(units - 1, minlength=opened.shards)
    found[f"buffer of {config.buffer:,}"] = buffered(shards, count, config.seed, config.buffer)
    return size, _reordered(found), _groups(corpus, opened, config)


def _reordered(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As stored comes last: it is no shuffle."""
    return {name: found[name] for name in sorted(found, key=lambda name: name == AS_STORED)}


def _groups(corpus: Path, opened: Corpus, config: StatsConfig) -> Groups:
    """Shards, documents, and sources where there are several, of the token with which a unit begins."""
    documents = Documents(corpus, config.split)
    starts = documents.starts()
    sources, names = documents.labels("source")

    def token(units: np.ndarray) -> np.ndarray:
        return np.minimum(units * config.sequence_length, opened.tokens - 1)

    def document(units: np.ndarray) -> np.ndarray:
        return np.searchsorted(starts, token(units), side="right") - 1

    groups = {
        "documents": document,
        "shards": lambda units: np.searchsorted(opened.shard_starts, token(units), side="right") - 1,
    }
    if len(names) > 1:
        groups["sources"] = lambda units: sources[document(units)]
    return {name: group for name, group in groups.items() if name != "shards" or opened.shards > 1}


def _tell(console: Console, size: int, config: StatsConfig, measured: dict[str, dict[str, Figure]]) -> None:
    from launcher.corpus.stats import table

    console.print(
        f"{size:,} samples of {config.sequence_length:,} tokens in an epoch; batches of {config.batch:,}. Beside each figure "
        f"how many standard deviations it is from a perfect shuffle: beyond {GOOD:g} it is none."
    )
    first = next(iter(measured.values()))
    rows = [
        (figure, f"{one.expected:.4g} ± {one.deviation:.2g}", *(_cell(found[figure]) for found in measured.values()))
        for figure, one in first.items()
    ]
    rows.append(("", "", *map(verdict, measured.values())))
    console.print(table(("", "by chance", *measured), rows))
    for name, meaning in MEANINGS.items():
        console.print(f"  {name}: {meaning}", style="dim")


def verdict(found: dict[str, Figure]) -> str:
    """Whether an order can be told from a perfect shuffle."""
    worst = max(found, key=lambda name: abs(found[name].z))
    return "mixed" if abs(found[worst].z) <= GOOD else f"not mixed: {worst}"


def _cell(one: Figure) -> str:
    return f"{one.value:.4g} ({one.z:+.1f})" if abs(one.z) < 100 else f"{one.value:.4g} ({one.z:+.0f})"


def _finite(z: float) -> float:
    return z if math.isfinite(z) else math.copysign(_MOST_Z, z)


def _picture(
    corpus: Path,
    config: StatsConfig,
    size: int,
    orders: dict[str, np.ndarray],
    measured: dict[str, dict[str, Figure]],
    theme: Theme = LIGHT,
) -> bytes:
    with in_style(theme):
        picture = Picture(figsize=(11, 6.4), layout="constrained")
        picture.suptitle(f"{corpus.name}: shuffles", x=0.01, ha="left", fontsize=15, fontweight="bold")
        parts: Any = picture.subfigures(2, 1, height_ratios=(1.15, 1))
        above, below = parts
        for place, (name, order) in enumerate(orders.items()):
            axes = above.add_subplot(1, len(orders), 1 + place)
            _draw_order(axes, order, size, theme.pen(place).colour, place == 0)
            title(axes, theme, name)
        _draw_figures(below.add_subplot(), measured, theme)
        return file_of(picture, theme, "png")


def _draw_order(axes: Axes, order: np.ndarray, size: int, colour: str, first: bool) -> None:
    """Each sample by its place in the stream (across) and in the corpus (up): a perfect shuffle is an even cloud."""
    shown = np.unique(np.linspace(0, len(order) - 1, min(_DOTS, len(order))).astype(int))
    axes.plot(shown, order[shown] / size, ".", color=colour, markersize=1.6, markeredgewidth=0, alpha=0.7)
    axes.set_xlim(0, len(order))
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelleft=first)


def _draw_figures(axes: Axes, measured: dict[str, dict[str, Figure]], theme: Theme) -> None:
    """How far each figure of each order is from chance, in its standard deviations."""
    figures = list(next(iter(measured.values())))
    for place, found in enumerate(measured.values()):
        rows = np.arange(len(figures)) + (place - (len(measured) - 1) / 2) * 0.13
        distances = [min(_MOST_Z, abs(found[figure].z)) for figure in figures]
        axes.plot(distances, rows, "o", color=theme.pen(place).colour, markersize=6, clip_on=False)
    axes.axvspan(0, GOOD, color=theme.series[2], alpha=0.12, linewidth=0)
    axes.set_xscale("symlog", linthresh=GOOD)
    axes.set_xlim(0, _MOST_Z)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xticks([0, 2, GOOD, 10, 100, 1000, _MOST_Z])
    axes.set_yticks(range(len(figures)), figures, color=theme.ink)
    axes.set_ylim(len(figures) - 0.5, -0.5)
    title(axes, theme, "standard deviations from a perfect shuffle", "colours as above")
