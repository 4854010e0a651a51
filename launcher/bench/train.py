"""`triaxis bench train`: tokens/s, start-up, memory and the cost of checkpoints, each against what it should be near.

    triaxis bench train [experiment=tiny …overrides] [--rounds N] [--steps N] [--json FILE]

Three contenders train the same model on the same batches in turns (`launcher.bench.turns`): Triaxis at one process
through its real spine, a bare PyTorch loop, and `transformers.Trainer`. All figures of a run are in what `run` returns.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from launcher.bench.arena import Arena
from launcher.bench.flags import parse
from launcher.bench.measure import (
    SAVE_EVERY,
    WARM_UP,
    Rounds,
    compete,
    measure_saves,
    memory_figures,
    worst_difference,
)
from launcher.bench.show import show, write_figures
from launcher.bench.startup import launcher_seconds
from launcher.bench.turns import Contender
from launcher.bench.utilisation import measure_utilisation
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.machine import environment
from launcher.submit import build_corpus
from models.config import ModelConfig, ModelError, count_parameters
from models.huggingface import family

GOAL_BARE, GOAL_TRAINER, GOAL_STALL = 0.97, 1.0, 0.05


def run(recipe: Recipe, *, rounds: int, steps: int, overrides: Sequence[str] = ("experiment=tiny",)) -> dict[str, Any]:
    """All figures of a bench of one recipe. rounds: turns of each contender; steps: counted ones of each turn.

    overrides: what the start-up figures compose.
    """
    if rounds < 2 or steps < 1:
        raise RecipeError(f"--rounds={rounds} --steps={steps}: a comparison needs at least 2 rounds of 1 step")
    load = os.getloadavg()[0]
    build_corpus(recipe)
    with Arena(recipe, _steps_at_most(rounds, steps)) as arena:
        ours = arena.start("triaxis")
        rank = ours.ready().startup  # alone, since what runs beside it would be in its times
        startup = {
            "launcher": launcher_seconds(list(overrides), arena.directory / "triaxis" / "config.yaml"),
            "rank": rank,
        }
        skipped = _no_trainer(arena.recipe.model)
        contenders = {"triaxis": ours, "bare": arena.start("bare")}
        if not skipped:
            contenders["trainer"] = arena.start("trainer")
        waiting = arena.start("triaxis", name="synchronous", asynchronous=False)
        for contender in [*list(contenders.values())[1:], waiting]:
            contender.ready()
        compared = compete(contenders, rounds, steps)
        figures = {
            **_about(arena, rounds, steps, load),
            "speed": _speed(compared, arena.recipe.train.batch_tokens, skipped),
            "startup": startup,
            "memory": memory_figures(compared.memory, "triaxis", "bare"),
            "checkpoint": _checkpoint(ours, waiting, rounds),
        }
    return {**figures, "utilisation": measure_utilisation(recipe)}


def _steps_at_most(rounds: int, steps: int) -> int:
    return 1 + rounds * (WARM_UP + steps) + (3 * rounds + 2) * SAVE_EVERY


def _no_trainer(model: ModelConfig) -> str:
    """Why there is no Trainer to compare with; empty where there is."""
    missing = [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        return f"skipped: {' and '.join(missing)} not installed (make setup installs the development extra)"
    try:
        return "" if family(model) == "llama" else f"skipped: {model.name} is no Llama"
    except ModelError:
        return f"skipped: {model.name} is no Llama"


def _speed(compared: Rounds, batch_tokens: int, skipped: str) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "step_seconds": {name: statistics.median(values) for name, values in compared.seconds.items()},
        "rounds": compared.seconds,
        "against_bare": compared.speed_against("triaxis", "bare"),
        "loss_difference": worst_difference(compared.losses["triaxis"], compared.losses["bare"]),
        "trainer": skipped,
    }
    figures["tokens_per_second"] = {name: batch_tokens / value for name, value in figures["step_seconds"].items()}
    if not skipped:
        figures["against_trainer"] = compared.speed_against("triaxis", "trainer")
    return figures


def _checkpoint(ours: Contender, waiting: Contender, rounds: int) -> dict[str, Any]:
    return measure_saves({"asynchronous": ours, "synchronous": waiting}, max(1, rounds // 2))


def _about(arena: Arena, rounds: int, steps: int, load: float) -> dict[str, Any]:
    recipe, task = arena.recipe, arena.task
    return {
        "date": time.strftime("%Y-%m-%d"),
        "environment": environment(),
        "load_before": load,
        "model": recipe.model.name,
        "parameters": count_parameters(recipe.model),
        "sequence_length": recipe.train.sequence_length,
        "batch_tokens": recipe.train.batch_tokens,
        "micro_batch": recipe.train.micro_batch,
        "precision": task.precision,
        "device": task.device,
        "threads": task.threads,
        "rounds": rounds,
        "steps": steps,
        "goals": {"against_bare": GOAL_BARE, "against_trainer": GOAL_TRAINER, "stall_steps": GOAL_STALL},
    }


def main(arguments: list[str]) -> int:
    """The command; everything that is not one of its flags is an override of the recipe."""
    parser = argparse.ArgumentParser(
        prog="triaxis bench train", description="Triaxis against a bare loop and a Trainer, in one run."
    )
    parser.add_argument("--rounds", type=int, default=12, help="turns of each contender (default 12)")
    parser.add_argument("--steps", type=int, default=5, help="counted steps of each turn (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write all figures there; - prints them")
    flags, overrides = parse(parser, arguments)
    recipe = build_recipe(compose_tree(overrides))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the scratch directory goes, as with Ctrl-C
    figures = run(recipe, rounds=flags.rounds, steps=flags.steps, overrides=overrides)
    show(figures)
    write_figures(figures, flags.json)
    return 0
