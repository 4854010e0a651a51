"""`triaxis bench goodput`: a run that loses a rank every so often, beside one that does not, and beside the optimum.

    triaxis bench goodput [experiment=tiny …overrides] [--every SECONDS] [--steps N] [--ranks N] [--json FILE]

A rank is killed (SIGKILL) `--every` seconds after the run has made the first step of each attempt; `life.restarts` brings the
run back. Both runs must end with the same losses, bitwise. The share of time lost has three parts: starting again, steps made
twice, and what saving holds up. With failures M apart, a save that holds training up for C and a restart that takes R, the
first order of what an interval of t loses is (R + t / 2 + M C / t) / (M + R), least at t = sqrt(2 C M) (J. W. Young, "A first
order approximation to the optimum checkpoint interval", CACM 17, 1974; J. T. Daly, FGCS 22, 2006 has the higher orders, which
matter where t nears M).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from launcher.attempts import read_attempts
from launcher.bench.flags import parse
from launcher.bench.show import write_figures
from launcher.bench.turns import ROOT, BenchError
from launcher.compose import build_recipe, compose_tree
from launcher.exits import FAILED
from launcher.machine import environment
from launcher.submit import build_corpus
from launcher.terminal import new_table, open_console

QUIET = ("tracker=none", "train.sample_length=0", "train.validate_every_tokens=0", "cluster.device=cpu")
STALL = re.compile(r"held training up (\d+) ms")


@dataclass
class Harassed:
    """What was done to a run, and when, in seconds since the epoch."""

    first: float = 0.0  # when the first step was seen
    killed: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)  # after each kill: when the first new step was seen


def optimum(save: float, apart: float) -> float:
    """Seconds between saves that lose least. save: seconds that one holds training up; apart: seconds between failures."""
    return math.sqrt(2 * save * apart)


def lost_share(interval: float, save: float, apart: float, restart: float) -> float:
    """Share of time lost, of all: the formula at the head of this file."""
    return (restart + interval / 2 + apart * save / interval) / (apart + restart)


def run(overrides: Sequence[str], *, every: float, steps: int, ranks: int) -> dict[str, Any]:
    """All figures. every: seconds between a start and the next failure."""
    load = os.getloadavg()[0]
    recipe = build_recipe(compose_tree([*overrides, *QUIET]))
    build_corpus(recipe)
    batch = recipe.train.batch_tokens
    common = [*overrides, *QUIET, f"parallel.data={ranks}", f"train.tokens={steps * batch}", "checkpoint.keep_last=2"]
    scratch = Path(tempfile.mkdtemp(prefix="triaxis-goodput-"))
    try:
        straight, pilot = scratch / "straight", max(1, steps // 10)
        _end(_start([*common, f"checkpoint.every_tokens={pilot * batch}"], straight))
        step = statistics.median(record["step_seconds"] for record in _records(straight, "step"))
        save = _stall(straight)
        between = max(1, round(optimum(save, every) / step))
        options = [f"checkpoint.every_tokens={between * batch}", "life.restarts=100000", "life.fruitless=20"]
        told = harass([*common, *options], scratch / "run", every)
        figures = _figures(scratch, told, step=step, between=between, every=every)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    about = {"date": time.strftime("%Y-%m-%d"), "environment": environment(), "load_before": load}
    return {**about, "model": recipe.model.name, "ranks": ranks, "steps": steps, "batch_tokens": batch, **figures}


def harass(overrides: Sequence[str], run_directory: Path, every: float) -> Harassed:
    """Train, and kill the last rank again and again until the run ends."""
    told = Harassed()
    process = _start(overrides, run_directory)
    seen, due = 0, math.inf  # starts of ranks whose first new step was seen; when the next failure comes
    try:
        while process.poll() is None:
            time.sleep(0.1)
            starts, steps = (_records(run_directory, kind) for kind in ("start", "step"))
            if len(starts) > seen and steps and steps[-1]["step"] > starts[-1]["start_step"]:
                now = time.time()
                told.first = told.first or now
                told.returned += [now] if seen else []
                seen, due = len(starts), now + every
            if time.time() >= due and (victim := _a_rank(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    told.killed.append(time.time())
                due = math.inf
    finally:
        _end(process)
    return told


def _figures(scratch: Path, told: Harassed, *, step: float, between: int, every: float) -> dict[str, Any]:
    run_directory = scratch / "run"
    curve, straight = (_curve(scratch / name) for name in ("run", "straight"))
    attempts = read_attempts(run_directory)
    failed = [attempt for attempt in attempts if attempt.code == FAILED]
    useful = sum(record["step_seconds"] for record in _records(run_directory, "step"))
    own_step = useful / len(curve)
    # from the first step to the last: what comes before and after is no failure's, a run without any pays it too
    wall = _records(run_directory, "step")[-1]["time"] - told.first
    restarts = [back - dead for dead, back in zip(told.killed, told.returned, strict=False)]
    redone = sum(attempt.last_step - attempt.saved_step for attempt in failed)
    restart, save = statistics.fmean(restarts) if restarts else 0.0, _stall(run_directory)
    apart = (wall - sum(restarts)) / max(1, len(told.killed))  # the last stretch ends with the run, not with a failure
    best = optimum(save, apart)
    return {
        "every": every,
        "apart_seconds": apart,
        "failures": len(told.killed),
        "same_losses": curve == straight,
        "final_loss": curve[-1][1] if curve else None,
        "step_seconds": own_step,
        "straight_step_seconds": step,
        "save_seconds": save,
        "restart_seconds": restart,
        "interval_steps": between,
        "interval_seconds": between * own_step,
        "best_interval_seconds": best,
        "wall_seconds": wall,
        "useful_seconds": useful,
        "lost": {
            "starting again": sum(restarts) / wall,
            "steps made twice": redone * own_step / wall,
            "saving": save * len(curve) / between / wall,
        },
        "steps_made_twice": redone,
        "predicted": lost_share(between * own_step, save, apart, restart),
        "optimum": lost_share(best, save, apart, restart),
        "optimum_without_restarts": lost_share(best, save, apart, 0.0),
    }


def _start(overrides: Sequence[str], run_directory: Path) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    place = (f"run.dir={run_directory.parent}", f"run.name={run_directory.name}")
    with run_directory.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", "train", *overrides, *place],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _end(process: subprocess.Popen) -> None:
    """Wait for a run's end; where something ends this bench, take the run with it."""
    try:
        if sys.exc_info()[0] is not None:
            process.kill()
        code = process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code:
        raise BenchError(f"`triaxis train` ended with exit code {code}")


def _a_rank(launcher: int) -> int | None:
    """Process id of a rank's: the youngest below the launcher that is named as one."""
    found, below = [], [launcher]
    for parent in below:
        with contextlib.suppress(OSError):
            below += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
            if Path(f"/proc/{parent}/comm").read_text().startswith("rank_"):
                found.append(parent)
    return max(found, default=None)


def _records(run_directory: Path, kind: str) -> list[dict[str, Any]]:
    try:
        lines = (run_directory / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last one may be torn
            found.append(json.loads(line))
    return [record for record in found if record["kind"] == kind]


def _curve(run_directory: Path) -> list[tuple[int, float, float]]:
    return [(record["step"], record["loss"], record["grad_norm"]) for record in _records(run_directory, "step")]


def _stall(run_directory: Path) -> float:
    """Seconds that a save held training up, the median of all but the first, which makes room."""
    texts = [record["text"] for record in _records(run_directory, "event") if record["event"] == "checkpoint"]
    stalls = [int(found[1]) / 1000 for text in texts if (found := STALL.search(text))]
    return statistics.median(stalls[1:] or stalls or [0.0]) or 0.001


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The share of time lost, by cause, beside what theory says."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{figures['model']}, {figures['steps']} steps on {figures['ranks']} ranks, {machine['cores']} cores, load "
        f"{figures['load_before']:.1f} before; a rank was killed {figures['failures']} times, {figures['every']:g} s after "
        "training had begun again",
        soft_wrap=True,
    )
    same = (
        "the same as without a failure, bitwise" if figures["same_losses"] else "NOT those of the run without failures"
    )
    console.print(f"losses: {same}; the last is {figures['final_loss']:.6f}", soft_wrap=True)
    table = new_table("Share of time lost", "", "share", "of it")
    total = sum(figures["lost"].values())
    for cause, share in figures["lost"].items():
        table.add_row(cause, f"{share:.1%}", f"{share / total:.0%}" if total else "")
    table.add_section()
    table.add_row("in all", f"{total:.1%}")
    table.add_row(f"theory, saves every {figures['interval_seconds']:.2f} s", f"{figures['predicted']:.1%}")
    table.add_row(f"optimum, saves every {figures['best_interval_seconds']:.2f} s", f"{figures['optimum']:.1%}")
    table.add_row("optimum, were restarts free", f"{figures['optimum_without_restarts']:.1%}")
    console.print(table)
    console.print(
        f"a save holds up {1000 * figures['save_seconds']:.0f} ms, a restart takes {figures['restart_seconds']:.1f} s, "
        f"{figures['steps_made_twice']} steps were made twice, {figures['apart_seconds']:.0f} s of training to a failure"
    )


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench goodput", description="What failures cost, beside the optimum."
    )
    parser.add_argument("--every", type=float, default=30.0, help="seconds of training between failures (default 30)")
    parser.add_argument("--steps", type=int, default=300, help="steps of the run (default 300)")
    parser.add_argument("--ranks", type=int, default=2, help="data ranks (default 2)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parse(parser, arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that runs and their scratch go, as with Ctrl-C
    figures = run(overrides, every=max(0.1, flags.every), steps=max(10, flags.steps), ranks=max(1, flags.ranks))
    show(figures)
    write_figures(figures, flags.json)
    return 0 if figures["same_losses"] else 1
