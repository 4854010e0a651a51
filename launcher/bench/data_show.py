"""The figures of `bench data` as tables and as a picture."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from launcher.bench.data_peers import PEERS
from launcher.report.theme import LIGHT
from launcher.terminal import new_table, open_console


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """Print every table; a goal that is missed is marked, not an error: the machine may be busy."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {figures['load_before']:.1f} before; {figures['tokens'] / 1e6:.0f} "
        f"million tokens in documents of 800 on average; {figures['rounds']} rounds of {figures['batches']} batches of "
        f"{figures['batch']:,} tokens, one process and one thread each",
    )
    for table in (_speed(figures), _memory(figures), _disk(figures)):
        console.print(table)
    resume, waits = figures["resume"], figures["waiting"]
    told = ", ".join(f"{int(sample):,}: {1000 * seconds:.0f} ms" for sample, seconds in resume["seconds"].items())
    console.print(f"First batch of a fresh process at sample {told} ({resume['shards']:,} shards)")
    share = f"{waits['median']:.2%} of a training step (worst {waits['worst']:.2%} of {waits['steps']:.0f} steps)"
    console.print(f"Waiting for data: {share}")
    versions = dict.fromkeys(f"{PEERS[name][0]} {version}" for name, version in figures["versions"].items())
    console.print("Peers:", ", ".join(versions) or "none")
    for name in figures["absent"]:
        console.print(f"not installed, left out: {name}")


def _speed(figures: dict[str, Any]) -> Any:
    table = new_table(
        "Speed: medians; ratios of processor time within a round",
        "million tokens",
        "a second",
        "a core-second",
        "Triaxis is",
    )
    table.columns[0].no_wrap = True
    told = []
    for name, one in figures["loaders"].items():
        goal, ratio, speed = figures["goals"].get(name), one["ours_is"], one["tokens_per_core_second"]
        if goal is not None:
            told.append(f"goal of {name}: more than {goal / 1e6:.0f} a core-second{'' if speed > goal else ', missed'}")
        times = "" if name == "Triaxis" else f"{ratio['median']:.2f}× ({ratio['low']:.2f}–{ratio['high']:.2f})"
        table.add_row(name, f"{one['tokens_per_second'] / 1e6:.1f}", f"{speed / 1e6:.1f}", times)
    table.caption = "; ".join(told)
    return table


def _memory(figures: dict[str, Any]) -> Any:
    batches = figures["long"] // 2
    table = new_table(
        f"Start, s, and memory, MB; growth over {batches:,} batches ({batches * figures['batch'] / 1e6:.0f} million tokens)",
        *("", "opened", "command", "most", "own", "grew"),
    )
    table.columns[0].no_wrap = True
    for name, one in figures["loaders"].items():
        sizes = (f"{one[kind] / 1e6:.1f}" for kind in ("peak", "own", "growth"))
        table.add_row(name, f"{one['first_batch']:.2f}", f"{one['from_command']:.1f}", *sizes)
    table.caption = (
        "Opened: to the first batch, imports left out; command: with them. Own: without mapped files, which the kernel takes "
        "back when it needs room"
    )
    return table


def _disk(figures: dict[str, Any]) -> Any:
    table = new_table("Bytes on disk for a byte of tokens (two a token)", "", "times")
    for name, share in figures["disk"].items():
        table.add_row(name, f"{share:.3f}")
    return table


def draw(figures: dict[str, Any]) -> bytes:
    """Speeds as bars, a PNG."""
    from matplotlib.figure import Figure

    rows = sorted(figures["loaders"].items(), key=lambda row: row[1]["tokens_per_core_second"])
    names = [name for name, _ in rows]
    speeds = [one["tokens_per_core_second"] / 1e6 for _, one in rows]
    colours = [LIGHT.series[0] if name.startswith("Triaxis") else LIGHT.series[-1] for name, _ in rows]
    figure = Figure(figsize=(9.0, 0.9 + 0.48 * len(rows)))
    axes = figure.add_axes((0.36, 0.17, 0.58, 0.72))
    axes.barh(names, speeds, color=colours, height=0.62)
    for place, speed in enumerate(speeds):
        axes.text(speed, place, f" {speed:.1f}", va="center", color=LIGHT.ink, fontsize=9)
    axes.set_xlabel(f"million tokens per core-second, batches of {figures['batch']:,}", color=LIGHT.quiet)
    axes.set_xlim(0, 1.12 * max(speeds))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False, colors=LIGHT.ink)
    axes.set_title("Batches for a model, from local files", loc="left", color=LIGHT.ink, fontsize=11)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=150, facecolor=LIGHT.paper, metadata={"Software": None})
    return target.getvalue()
