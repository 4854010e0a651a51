"""`triaxis bench launch`: from the command to the end of the first step, part by part, beside a bare torchrun.

    triaxis bench launch [experiment=tiny …overrides] [--ranks N] [--rounds N] [--json FILE]

Both train the same model on CPU with as many ranks, in turns. The bare one has no recipe, no corpus, no checkpoint and no
health check: what Triaxis takes longer is what these cost.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.bench.flags import parse
from launcher.bench.show import write_figures
from launcher.bench.turns import ROOT, BenchError
from launcher.check import check_corpus
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe
from launcher.machine import environment, threads_for
from launcher.marks import FILE_NAME
from launcher.submit import build_corpus, world_of
from launcher.terminal import new_table, open_console

LIMIT = 600.0  # seconds in which a first step must be made
QUIET = (
    "tracker=none",
    "train.sample_length=0",
    "train.validation_tokens=1",
    "train.validate_every_tokens=0",
    "checkpoint.every_tokens=0",
    "cluster.device=cpu",
)


def run(overrides: Sequence[str], *, ranks: int, rounds: int) -> dict[str, Any]:
    """All figures. overrides: of the recipe that is started."""
    load = os.getloadavg()[0]
    overrides = [*overrides, *QUIET, f"parallel.data={ranks}"]
    recipe = build_recipe(compose_tree(overrides))
    build_corpus(recipe)
    recipe, world = world_of(check_corpus(recipe), "cpu")
    scratch = Path(tempfile.mkdtemp(prefix="triaxis-launch-"))
    try:
        ours: list[list[tuple[str, float]]] = []
        bare: list[float] = []
        for number in range(rounds):
            ours.append(start_ours(overrides, scratch, f"ours_{number}"))
            bare.append(start_bare(recipe, world, scratch / f"bare_{number}"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    names = [name for name, _ in ours[0]]
    parts = {name: statistics.median(dict(found)[name] for found in ours) for name in names}
    totals = [sum(seconds for _, seconds in found) for found in ours]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": load,
        "model": recipe.model.name,
        "ranks": world,
        "rounds": rounds,
        "parts": parts,
        "seconds": statistics.median(totals),
        "bare_seconds": statistics.median(bare),
        "ratio": statistics.median(own / theirs for own, theirs in zip(totals, bare, strict=True)),
    }


def start_ours(overrides: Sequence[str], scratch: Path, name: str) -> list[tuple[str, float]]:
    """(part, seconds) of one `triaxis train`, which is ended after its first step."""
    told = scratch / name / FILE_NAME
    command = [sys.executable, "-m", "launcher", "train", *overrides, f"run.dir={scratch}", f"run.name={name}"]
    _until(command, told, scratch / f"{name}.log")
    return [(part, seconds) for part, seconds in json.loads(told.read_text())["parts"]]


def start_bare(recipe: Recipe, world: int, told: Path) -> float:
    """Seconds of one torchrun from its command to the end of its first step."""
    task = told.with_suffix(".task")
    train = recipe.train
    about = {
        "model": recipe.model,
        "threads": threads_for(recipe.cluster, world),
        "micro_batch": train.micro_batch,
        "micro_batches": train.batch_sequences // (train.micro_batch * world),
        "sequence_length": train.sequence_length,
    }
    task.write_bytes(pickle.dumps(about))
    began = time.monotonic()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [sys.executable, *launch, "-m", "launcher.bench.launch_bare", str(task), str(told)]
    _until(command, told, told.with_suffix(".log"))
    return float(told.read_text()) - began


def _until(command: list[str], told: Path, log: Path) -> None:
    """Run a command until a file has come whole, then end it and all that it started."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": path}, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        end = time.monotonic() + LIMIT
        while not told.exists() or not told.read_text():
            if process.poll() not in (None, 0) or time.monotonic() > end:
                raise BenchError(f"{' '.join(command[1:4])}: made no first step\n{log.read_text()[-2000:]}")
            time.sleep(0.02)
    finally:
        process.terminate()  # both pass it on to their ranks
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The parts, the sum, and the bare one beside it."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{figures['model']} on {figures['ranks']} ranks, {machine['cpu']}, {machine['cores']} cores, load "
        f"{figures['load_before']:.1f} before; medians of {figures['rounds']} rounds",
        soft_wrap=True,
    )
    table = new_table("From the command to the first step", "", "seconds", "share")
    for part, seconds in figures["parts"].items():
        table.add_row(part, f"{seconds:.2f}", f"{seconds / sum(figures['parts'].values()):.0%}")
    table.add_section()
    table.add_row("Triaxis", f"{figures['seconds']:.2f}")
    table.add_row("bare torchrun", f"{figures['bare_seconds']:.2f}")
    table.add_row("Triaxis takes", f"{figures['ratio']:.2f}×")
    console.print(table)


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench launch", description="From the command to the first step, beside a bare torchrun."
    )
    parser.add_argument("--ranks", type=int, default=2, help="data ranks (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each (default 3)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parse(parser, arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that runs and their scratch go, as with Ctrl-C
    figures = run(overrides, ranks=max(1, flags.ranks), rounds=max(1, flags.rounds))
    show(figures)
    write_figures(figures, flags.json)
    return 0
