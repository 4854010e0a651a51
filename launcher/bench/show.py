"""The figures of a bench as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.terminal import new_table, open_console, verdict


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """Print every table; a goal that is missed is marked, not an error: the machine may be busy."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(figures["model"], style="bold", end=", ")
    console.print(
        f"{figures['parameters']:,} parameters, {figures['precision']}, batches of "
        f"{figures['batch_tokens']:,} tokens, {figures['device']} with {figures['threads']} threads"
    )
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {figures['load_before']:.1f} before; {figures['rounds']} rounds "
        f"of {figures['steps']} steps",
    )
    for table in (_speed(figures), _memory(figures), _checkpoint(figures), _startup(figures)):
        console.print(table)
    console.print(_utilisation(figures["utilisation"]))


def write_figures(figures: dict[str, Any], place: str | None) -> None:
    """All figures as JSON to a file, or to the screen where `place` is -."""
    text = json.dumps(figures, indent=1)
    if place == "-":
        print(text)
    elif place:
        Path(place).write_text(text + "\n")


def _speed(figures: dict[str, Any]) -> Table:
    speed, goals = figures["speed"], figures["goals"]
    table = new_table(
        "Speed: medians; ratios of turns that were neighbours", "", "tokens/s", "ms/step", "Triaxis is", "goal"
    )
    titles = {"triaxis": "Triaxis", "bare": "bare PyTorch loop", "trainer": "transformers.Trainer"}
    for name, title in titles.items():
        if name not in speed["tokens_per_second"]:
            table.add_row(title, speed["trainer"], "", "", "")
            continue
        ratio = speed.get(f"against_{name}")
        told = f"{ratio['median']:.3f}× ({ratio['low']:.3f}–{ratio['high']:.3f})" if ratio else ""
        goal = goals.get(f"against_{name}")
        reached = verdict(ratio["median"] >= goal, f"≥ {goal}") if ratio else ""
        seconds = speed["step_seconds"][name]
        table.add_row(title, f"{speed['tokens_per_second'][name]:,.0f}", f"{1000 * seconds:.1f}", told, reached)
    table.caption = f"losses of Triaxis and the bare loop differ by {speed['loss_difference']:.0e} at first"
    return table


def _memory(figures: dict[str, Any]) -> Table:
    memory = figures["memory"]
    table = new_table("Memory: peak of each process", "", "after imports", "peak", "since then", "on the GPU")
    for name, sizes in memory["contenders"].items():
        gpu = f"{sizes['gpu_peak'] / 1e6:,.0f} MB" if "gpu_peak" in sizes else ""
        grown = sizes["peak"] - sizes["imported"]
        table.add_row(
            name, f"{sizes['imported'] / 1e6:,.0f} MB", f"{sizes['peak'] / 1e6:,.0f} MB", f"{grown / 1e6:,.0f} MB", gpu
        )
    table.caption = f"peak of Triaxis: {memory['peak_ratio']:.2f}× that of the bare loop"
    return table


def _checkpoint(figures: dict[str, Any]) -> Table:
    table = new_table("A checkpoint, in steps", "", "stall", "first", "step beside writer", "in all", "goal")
    limit = figures["goals"]["stall_steps"]
    for name, found in figures["checkpoint"].items():
        reached = verdict(found["stall_steps"] < limit, f"stall < {limit:.0%}") if name == "asynchronous" else ""
        table.add_row(
            name,
            f"{found['stall_steps']:.1%} ({1000 * found['stall_seconds']:.1f} ms)",
            f"{found['first_stall_steps']:.1%}",
            f"{found['step_beside_writer']:.2f}×",
            f"{found['cost_steps']:.2f}",
            reached,
        )
    return table


def _startup(figures: dict[str, Any]) -> Table:
    table = new_table("From the command to the first step", "", "seconds")
    total = 0.0
    for process, parts in figures["startup"].items():
        for part, seconds in parts.items():
            table.add_row(f"{process}: {part}", f"{seconds:.2f}")
            total += seconds
    table.add_section()
    table.add_row("in all", f"{total:.2f}")
    return table


def _utilisation(found: dict[str, Any]) -> Table | str:
    if "skipped" in found:
        return f"FLOP utilisation of gpt2_124m and llama_1b in bf16: {found['skipped']}"
    table = new_table("FLOP utilisation in bf16", "", "parameters", "tokens/s", "utilisation", "memory")
    for name, row in found.items():
        used = "peak unknown" if row["utilisation"] is None else f"{row['utilisation']:.1%}"
        table.add_row(
            name, f"{row['parameters']:,}", f"{row['tokens_per_second']:,.0f}", used, f"{row['gpu_peak'] / 1e9:.1f} GB"
        )
    return table
