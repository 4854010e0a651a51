"""FLOP utilisation of published shapes in bf16 on one GPU, from the real step path."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import torch

from launcher.bench.arena import Arena
from launcher.bench.measure import WARM_UP
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe
from launcher.machine import peak_flops
from models.config import count_parameters
from models.flops import flops_per_token

EXPERIMENTS = ("gpt2_124m", "llama_1b")
MICRO_BATCHES = 4  # of a step: enough that the optimizer weighs about as little as in a long run
STEPS = 10
NO_GPU = "skipped: this machine has no GPU"


def measure_utilisation(recipe: Recipe) -> dict[str, Any]:
    """Experiment -> tokens/s and utilisation, reading the corpus of `recipe`; or a line that says why not."""
    if not torch.cuda.is_available():
        return {"skipped": NO_GPU}
    return {name: _utilisation(_published(name, recipe)) for name in EXPERIMENTS}


def _published(name: str, recipe: Recipe) -> Recipe:
    """An experiment with a short batch; its vocabulary is the model's own, whatever the corpus uses of it."""
    found = build_recipe(compose_tree([f"experiment={name}", "precision=bf16"]))
    tokens = MICRO_BATCHES * found.train.micro_batch * found.train.sequence_length
    return replace(
        found,
        run=replace(found.run, dir=recipe.run.dir),
        train=replace(found.train, batch_tokens=tokens),
        data=replace(found.data, path=recipe.data.path),
        cluster=recipe.cluster,
        tracker=recipe.tracker,
    )


def _utilisation(recipe: Recipe) -> dict[str, Any]:
    with Arena(recipe, WARM_UP + STEPS) as arena:
        contender = arena.start("triaxis")
        contender.ready()
        contender.turn(WARM_UP + 2)
        turn = contender.turn(WARM_UP + STEPS)
        model, train = arena.recipe.model, arena.recipe.train
    speed = train.batch_tokens / statistics.median(turn.seconds[WARM_UP:])
    peak = peak_flops("bf16")
    return {
        "parameters": count_parameters(model),
        "tokens_per_second": speed,
        "utilisation": speed * flops_per_token(model, train.sequence_length) / peak if peak else None,
        "gpu_peak": turn.memory.get("gpu_peak", 0),
    }
