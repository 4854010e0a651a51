"""`triaxis bench layouts`: what layouts cost, as ratios within one run on CPU.

    triaxis bench layouts [experiment=tiny …overrides] [--rounds N] [--steps N] [--pipelines 2,4] [--json FILE]

Two comparisons: the idle share of a pipeline's step under each schedule against theory, by stages that sleep; and DeepSpeed
against the torch engine on the same layouts of two processes, in turns while both are alive.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from launcher.bench.idle import Naps, layout, measure_idle
from launcher.bench.measure import compete, worst_difference
from launcher.bench.show import write_figures
from launcher.bench.stepper import VOCABULARY
from launcher.bench.world import RANKS, World
from launcher.check import check_layout
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.terminal import new_table, open_console
from models.config import count_parameters
from parallel.check import check_engine, check_micro_batches
from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.schedule import SCHEDULES

LAYOUTS = {
    "data 2, ZeRO 1": ParallelConfig(data=2, zero_stage=1),
    "pipeline 2, 1F1B": ParallelConfig(pipeline=2, data=1),
    "tensor 2": ParallelConfig(tensor=2, data=1),
}
ENGINES = ("deepspeed", "torch")


def run(recipe: Recipe, naps: Naps, *, rounds: int, steps: int, pipelines: Sequence[int]) -> dict[str, Any]:
    """All figures. rounds: turns of each engine; steps: counted ones of each turn; pipelines: degrees to measure."""
    if rounds < 2 or steps < 1:
        raise RecipeError(f"--rounds={rounds} --steps={steps}: a comparison needs at least 2 rounds of 1 step")
    check_naps(naps, pipelines)
    model = replace(recipe.model, vocab_size=recipe.model.vocab_size or VOCABULARY)
    recipe = replace(recipe, model=model, phases=())
    check_layouts(recipe)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": os.getloadavg()[0],
        "model": model.name,
        "parameters": count_parameters(model),
        "batch_tokens": recipe.train.batch_tokens,
        "rounds": rounds,
        "steps": steps,
        "naps": {"unit": naps.unit, "micro_batches": naps.micro_batches, "steps": naps.steps},
        "idle": [found for ranks in pipelines for found in measure_idle(ranks, naps)],
        "engines": _engines(recipe, rounds, steps),
    }


def check_naps(naps: Naps, pipelines: Sequence[int]) -> None:
    """Refuse times, degrees and micro-batches that a schedule cannot have."""
    if naps.unit <= 0:
        raise RecipeError(f"--unit={1000 * naps.unit:g}: stages must sleep; give milliseconds above 0, such as 30")
    for ranks in pipelines:
        if ranks < 2:
            raise RecipeError(f"--pipelines={ranks}: one stage has no bubble; give degrees of 2 or more, such as 2,4")
        for schedule in SCHEDULES:
            try:
                check_micro_batches(layout(schedule, ranks), naps.micro_batches)
            except ParallelError as error:
                limit = str(error).partition("; ")[0]
                raise RecipeError(
                    f"--micro-batches={naps.micro_batches}: {limit}; give a multiple of {2 * math.lcm(*pipelines)}"
                ) from None


def check_layouts(recipe: Recipe) -> None:
    """Refuse a recipe that a compared layout cannot have, before any process starts."""
    for shape in LAYOUTS.values():
        for engine in ENGINES:
            config = replace(shape, engine=engine)
            check_layout(replace(recipe, parallel=config), RANKS)
            check_engine(config, PrecisionConfig("fp32"), "cpu", RANKS)


def _engines(recipe: Recipe, rounds: int, steps: int) -> list[dict[str, Any]]:
    """DeepSpeed against torch on each layout: worlds of both live side by side and work in turns."""
    worlds = {engine: World(recipe) for engine in ENGINES}
    try:
        found = []
        for name, shape in LAYOUTS.items():
            for engine, world in worlds.items():
                world.open(replace(shape, engine=engine))
            turns = compete(worlds, rounds, steps)
            tokens = recipe.train.batch_tokens
            speed = {engine: tokens / statistics.median(turns.seconds[engine]) for engine in ENGINES}
            found.append(
                {
                    "layout": name,
                    "tokens_per_second": speed,
                    "ratio": turns.speed_against(*ENGINES),
                    "loss_difference": worst_difference(*(turns.losses[engine] for engine in ENGINES)),
                }
            )
        return found
    finally:
        for world in worlds.values():
            world.close()


def show(figures: dict[str, Any], console: Console | None = None) -> None:
    """The figures as two tables."""
    console = console or open_console()
    machine = figures["environment"]["machine"]
    console.print(
        f"{machine['cpu']}, {machine['cores']} cores, load {figures['load_before']:.1f} before; {figures['rounds']} rounds",
    )
    console.print(_idle(figures))
    console.print(_speeds(figures))


def _idle(figures: dict[str, Any]) -> Table:
    naps = figures["naps"]
    table = new_table(
        f"Pipelines: medians of {naps['steps']} steps of {naps['micro_batches']} micro-batches",
        *("schedule", "stages", "idle", "theory", "a step", "of theory"),
    )
    for one in figures["idle"]:
        table.add_row(
            one["schedule"],
            f"{one['ranks']} x {one['stages'] // one['ranks']}",
            f"{one['idle']:.1%}",
            f"{one['theory']:.1%}",
            f"{one['against_ideal']:.3f}×",
            f"{one['against_theory']:.3f}×",
        )
    table.caption = (
        "Stages: ranks x those of each. Idle: share of all ranks' time. A step: against one without a bubble, and against one "
        f"with that of theory. Stages sleep instead of computing, {1000 * naps['unit']:g} ms a rank for forward and for each "
        "of two gradients of a micro-batch, so that ranks need no cores of their own; processes, messages, schedules and "
        "autograd are real"
    )
    return table


def _speeds(figures: dict[str, Any]) -> Table:
    table = new_table(
        f"{figures['model']}, {figures['parameters']:,} parameters, float32, batches of {figures['batch_tokens']:,} tokens, "
        f"{RANKS} processes: {figures['rounds']} rounds of {figures['steps']} steps",
        *("layout", "DeepSpeed", "torch", "DeepSpeed is", "losses differ"),
    )
    for one in figures["engines"]:
        speed, ratio = one["tokens_per_second"], one["ratio"]
        table.add_row(
            one["layout"],
            *(f"{speed[engine]:,.0f} t/s" for engine in ENGINES),
            f"{ratio['median']:.3f}× ({ratio['low']:.3f}–{ratio['high']:.3f})",
            f"{one['loss_difference']:.0e}",
        )
    return table


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(prog="triaxis bench layouts", description="What layouts cost, in one run on CPU.")
    parser.add_argument(
        "--rounds", type=int, default=9, help="turns of each engine, steps of each schedule (default 9)"
    )
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each turn of an engine (default 3)")
    parser.add_argument("--pipelines", default="2,4", help="pipeline degrees whose bubble is measured (default 2,4)")
    parser.add_argument("--micro-batches", type=int, default=8, help="of a step whose bubble is measured (default 8)")
    parser.add_argument("--unit", type=float, default=30.0, help="milliseconds of a rank's forward there (default 30)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parser.parse_known_args(arguments)
    for text in overrides:
        if text.lstrip("+~").startswith(("parallel", "precision", "phases")):
            raise RecipeError(
                f"{text}: has no effect on bench layouts, whose layouts are its own and in float32; leave it out"
            )
    if not any(text.startswith("experiment=") for text in overrides):
        overrides[:0] = ["experiment=tiny", "train.micro_batch=4"]  # as in tiny_3d: two on each of two data ranks
    naps = Naps(flags.unit / 1000, flags.micro_batches, flags.rounds)
    recipe = build_recipe(compose_tree(overrides))
    pipelines = _degrees(flags.pipelines)
    figures = run(recipe, naps, rounds=flags.rounds, steps=flags.steps, pipelines=pipelines)
    show(figures)
    write_figures(figures, flags.json)
    return 0


def _degrees(text: str) -> list[int]:
    try:
        return [int(degree) for degree in text.split(",")]
    except ValueError:
        raise RecipeError(f"--pipelines={text}: give degrees with commas between them, such as 2,4") from None
