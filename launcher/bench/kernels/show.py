"""The figures of the kernels as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.bench.kernels.record import COMPILED, CUDA_CPP, EAGER, HOST_CPP, LIGER, OWN, TRITON
from launcher.terminal import new_table, open_console, verdict

WAYS = (TRITON, CUDA_CPP, EAGER, COMPILED, LIGER, HOST_CPP)
BEST_KNOWN = "best known of others: norms backward 26 %, SwiGLU 91/58 %, cross entropy 90 %, MX row and column 68 %"


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """Print the rates and every kernel; a goal that is missed is marked, not an error."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{figures['device']}, {figures['dtype']}, {figures['threads']} threads; {machine['cpu']}, {machine['cores']} cores, "
        f"load {figures['load_before']:.1f} before; {figures['rounds']} rounds",
    )
    console.print(
        f"copies {figures['copy_rate'] / 1e9:,.0f} GB/s, products {figures['product_rate'] / 1e12:,.2f} TFLOP/s; shares are of "
        "these, of the bytes that must move or the products that must be made"
    )
    for sizes in dict.fromkeys(one["sizes"] for one in figures["kernels"]):
        rows = [one for one in figures["kernels"] if one["sizes"] == sizes]
        console.print(_table(sizes, rows))
    if figures["device"] == "cpu":
        console.print("tensors fit into a CPU's caches, so shares may exceed 100 %; goals are those of a GPU")
    else:
        console.print(BEST_KNOWN)


def _table(sizes: str, rows: list[dict[str, Any]]) -> Table:
    ways = [way for way in WAYS if any(way in one["seconds"] for one in rows)]
    table = new_table(f"{sizes} sizes: share (time)", "kernel", "least", *ways, "in a block", "memory", "goal")
    for one in rows:
        cells = [_cell(one, way) for way in ways]
        table.add_row(
            f"{one['kernel']} {one['pass']}",
            _time(one["least_seconds"]),
            *cells,
            _inside(one),
            _memory(one),
            _goal(one),
        )
    table.caption = "in a block: times as fast as the compiler's own, compiled with neighbours that it may fuse"
    return table


def _cell(one: dict[str, Any], way: str) -> str:
    return f"{one['shares'][way]:.0%} ({_time(one['seconds'][way])})" if way in one["seconds"] else ""


def _time(seconds: float) -> str:
    return f"{1e6 * seconds:,.0f} µs" if seconds < 0.01 else f"{1e3 * seconds:,.1f} ms"


def _inside(one: dict[str, Any]) -> str:
    plain = one["inside"].get(EAGER)
    told = [f"{way} {plain / one['inside'][way]:.2f}×" for way in OWN if way in one["inside"]]
    return ", ".join(told) or (_time(plain) if plain else "")


def _memory(one: dict[str, Any]) -> str:
    sizes = [size for size in one["memory"].values() if size is not None]
    return f"{sizes[0] / 1e6:,.0f} MB" if sizes else ""


def _goal(one: dict[str, Any]) -> Text | str:
    if one["goal"] is None:
        return ""
    ours = [one["shares"][way] for way in OWN if way in one["shares"]]
    goal = f"≥ {one['goal']:.0%}"
    if not ours:
        return goal
    return verdict(max(ours) >= one["goal"], goal)
