"""`triaxis bench plan`: how near plans come to published measurements, and how quickly layouts are judged.

    triaxis bench plan [--rows FILE] [--layouts N] [--json FILE]

Rows are those of tests/benchmarks/throughput.tsv, which constants may be judged by, and of throughput_others.tsv, which
none was taken from (its header names two exceptions); --rows takes a file of the same columns instead.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.bench.show import new_table, write_figures
from launcher.compose import build_recipe, compose_tree
from launcher.machine import environment
from launcher.plan.evaluate import task_of
from launcher.plan.published import Row, predict, read_rows
from launcher.plan.search import search
from launcher.plan.show import with_known_vocabulary

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "benchmarks"
FILES = ("throughput.tsv", "throughput_others.tsv")
GOALS = {"mean": 0.08, "worst": 0.20}


def compared(path: Path) -> dict[str, Any]:
    """The rows of a file, predicted and published, with mean and worst error of a step's seconds."""
    rows = [_compared(row) for row in read_rows(path)]
    errors = [abs(row["error"]) for row in rows]
    return {"rows": rows, "mean": statistics.mean(errors), "worst": max(errors)}


def _compared(row: Row) -> dict[str, Any]:
    step = predict(row)
    error = step.seconds / row.seconds - 1
    return {
        "source": row.source,
        "model": row.work.model.name,
        "gpus": row.gpus,
        "stack": row.machine.software.name,
        "published_seconds": row.seconds,
        "seconds": step.seconds,
        "published_tflops": row.tflops or None,
        "tflops": row.tflops / (1 + error) if row.tflops else None,
        "error": error,
        "parts": step.parts,
    }


def searched(most: int) -> dict[str, Any]:
    """Processor seconds in which a search judges so many layouts of 405 B on 16,384 H100: times, memory, checks of the best."""
    overrides = ["experiment=llama3_405b", "cluster=h100_8x64"]
    task = task_of(with_known_vocabulary(build_recipe(compose_tree(overrides))), 16384)
    began = time.process_time()
    found = search(task, most=most)
    return {"layouts": found.judged, "processor_seconds": time.process_time() - began, "load": os.getloadavg()[0]}


def show(figures: dict[str, Any], console: Console) -> None:
    """A table a file."""
    for name, found in figures["tables"].items():
        table = new_table(
            f"{name}: seconds of a step", "", "GPUs", "published", "predicted", "error", "TFLOP/s", "predicted"
        )
        for row in found["rows"]:
            counted = ("", "") if row["tflops"] is None else (f"{row['published_tflops']:.0f}", f"{row['tflops']:.0f}")
            table.add_row(
                f"{row['source'].split()[0].rstrip(',')} {row['model']}",
                f"{row['gpus']:,}",
                f"{row['published_seconds']:.2f}",
                f"{row['seconds']:.2f}",
                f"{100 * row['error']:+.1f} %",
                *counted,
            )
        console.print(table)
        console.print(f"mean error {100 * found['mean']:.1f} %, worst {100 * found['worst']:.1f} %")
    if took := figures["search"]:
        seconds = took["processor_seconds"]
        console.print(
            f"{took['layouts']:,} layouts judged in {seconds:.1f} s of one processor, load {took['load']:.1f}"
        )


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="triaxis bench plan", description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="a file of published rows instead of those of tests/benchmarks")
    parser.add_argument("--layouts", type=int, default=10_000, help="layouts to judge against the clock; 0 for none")
    parser.add_argument("--json", help="write all figures to a file, or - for the screen")
    told = parser.parse_args(arguments)
    began = time.perf_counter()
    paths = [told.rows] if told.rows else [FOLDER / name for name in FILES]
    figures: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "goals": GOALS,
        "tables": {path.name: compared(path) for path in paths},
        "seconds": time.perf_counter() - began,
        "search": searched(told.layouts) if told.layouts else None,
    }
    if told.json != "-":
        show(figures, Console(highlight=False))
    write_figures(figures, told.json)
    return 0
