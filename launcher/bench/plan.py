"""`triaxis bench plan`: how near plans come to published steps and to bytes that ranks allocate, and how quickly layouts are
judged.

    triaxis bench plan [--only time|memory|search] [--rows FILE] [--layouts N] [--seed N] [--judged N] [--json FILE]

time: rows are those of tests/benchmarks/throughput.tsv, which constants may be judged by, and of throughput_others.tsv, which
none was taken from (its header names two exceptions); --rows takes a file of the same columns instead.
memory: --layouts by chance (30) are trained on CPU and counted, --seed says which. State has to be equal to the byte and
activations within 5 %, else the command exits 1.
search: seconds of one processor in which --judged layouts (10,000) of 70 B are judged.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.bench.plan_layouts import sample
from launcher.bench.show import write_figures
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.machine import environment
from launcher.plan.evaluate import task_of
from launcher.plan.published import Row, predict, read_rows
from launcher.plan.search import search
from launcher.plan.show import with_known_vocabulary
from launcher.terminal import new_table, open_console

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "benchmarks"
FILES = ("throughput.tsv", "throughput_others.tsv")
PARTS: dict[str, dict[str, Any]] = {
    "time": {"rows": None},
    "memory": {"layouts": 30, "seed": 1},
    "search": {"judged": 10_000},
}
"""What is measured, and its flags with what they are unless given."""
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
    """Processor seconds in which a search judges so many layouts of 70 B on 512 H100, which has more of them than 405 B has on
    16,384: times, memory, checks of the best."""
    batch = ["train.sequence_length=8192", "train.batch_tokens=4_194_304", "train.micro_batch=1"]
    recipe = build_recipe(compose_tree(["model=llama3_70b", "cluster=h100_8x64", *batch]))
    task = task_of(with_known_vocabulary(recipe), 512)
    began = time.process_time()
    found = search(task, most=most)
    return {"layouts": found.judged, "processor_seconds": time.process_time() - began, "load": os.getloadavg()[0]}


def show(tables: dict[str, Any], console: Console) -> None:
    """A table a file."""
    for name, found in tables.items():
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


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="triaxis bench plan", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=PARTS, help="one of the three tables")
    parser.add_argument("--rows", type=Path, help="time: published rows of yours instead of those of tests/benchmarks")
    parser.add_argument("--layouts", type=int, help="memory: layouts to train, 30")
    parser.add_argument("--seed", type=int, help="memory: which ones, 1")
    parser.add_argument("--judged", type=int, help="search: layouts to judge against the clock, 10,000")
    parser.add_argument("--json", help="write all figures to a file, or - for the screen")
    told = parser.parse_args(arguments)
    options = _options(told)
    console = open_console(quiet=told.json == "-")
    figures: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "environment": environment()}
    if "time" in options:
        paths = [options["time"]["rows"]] if options["time"]["rows"] else [FOLDER / name for name in FILES]
        figures["time"] = {"goals": GOALS, "tables": {path.name: compared(path) for path in paths}}
        show(figures["time"]["tables"], console)
    if "search" in options:
        figures["search"] = found = searched(options["search"]["judged"])
        console.print(
            f"{found['layouts']:,} layouts judged in {found['processor_seconds']:.1f} s of one processor, load "
            f"{found['load']:.1f}"
        )
    if "memory" in options:
        from launcher.bench import plan_memory  # and with it engines, for seconds

        counted = plan_memory.run(sample(*options["memory"].values()))
        figures["memory"] = plan_memory.figures_of(counted)
        plan_memory.show(counted, console)
    write_figures(figures, told.json)
    return 0 if figures.get("memory", {"met": True})["met"] else 1


def _options(told: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Of each part that is asked for, refusing flags of others and counts of nothing."""
    found: dict[str, dict[str, Any]] = {}
    for part, flags in PARTS.items():
        given = {name: value for name in flags if (value := getattr(told, name)) is not None}
        if told.only not in (None, part):
            if given:
                raise RecipeError(
                    f"--{next(iter(given))}: has no effect with --only={told.only}; leave one of them out"
                )
            continue
        found[part] = flags | given
        for name in ("layouts", "judged"):
            if given.get(name, 1) < 1:
                raise RecipeError(f"--{name}={given[name]}: must be at least 1")
    return found
