"""The fastest layout of this machine: all GPUs, or on CPU the quickest of a few, measured in a few steps of the real run."""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from launcher.check import check_batch
from launcher.compose import save_recipe
from launcher.config import Recipe
from launcher.life import LifeConfig
from launcher.machine import cores, gpu_count
from launcher.workers import WorkerError, run_workers

MEASURED_STEPS = 8
WARM_UP_STEPS = 3


def choose_layout(recipe: Recipe, device: str, say: Callable[[str], None]) -> tuple[Recipe, int]:
    """The recipe with its data axis set, and the number of processes.

    On GPU every device becomes a data rank. On CPU the candidates are 1, 2, 4 … processes on the data axis, as many
    threads each as the cores allow; each trains a few steps in a scratch directory and the medians are compared.
    """
    if device == "cuda":
        count = gpu_count() // recipe.parallel.model_parallel
        return _with_data(recipe, count), count * recipe.parallel.model_parallel
    speeds: dict[int, float] = {}
    for data in _candidates(recipe):
        speeds[data] = _measure(_with_data(recipe, data), data * recipe.parallel.model_parallel)
        say(f"layout  data {data}: {speeds[data]:,.0f} tokens/s with {_threads(data)} thread(s) each")
    best = max(speeds, key=lambda data: speeds[data])
    if speeds[best] == 0:
        best = recipe.parallel.least_data
    return _with_data(recipe, best), best * recipe.parallel.model_parallel


def _candidates(recipe: Recipe) -> list[int]:
    least = recipe.parallel.least_data
    found, data = [], least
    while data <= max(cores(), least):
        try:
            check_batch(recipe, data)
            found.append(data)
        except ValueError:
            pass
        data *= 2
    return found or [least]


def _threads(processes: int) -> int:
    return max(1, cores() // processes)


def _with_data(recipe: Recipe, data: int) -> Recipe:
    return replace(recipe, parallel=replace(recipe.parallel, data=data))


def _measure(recipe: Recipe, world_size: int) -> float:
    """Median tokens/s of a few steps; 0 where the layout does not run."""
    scratch = Path(tempfile.mkdtemp(prefix="triaxis-layout-"))
    steps = WARM_UP_STEPS + MEASURED_STEPS
    trial = replace(
        recipe,
        run=replace(recipe.run, name="trial", dir=str(scratch), init_from="", init_what="weights"),
        train=replace(recipe.train, max_steps=steps, validation_tokens=1, validate_every_tokens=0, sample_length=0),
        tracker=replace(recipe.tracker, wandb="off", tensorboard=False, every_steps=10**9),
        checkpoint=replace(recipe.checkpoint, every_tokens=0, asynchronous=False),
        life=LifeConfig(health=False),
    )
    directory = scratch / "trial"
    directory.mkdir()
    save_recipe(trial, directory / "config.yaml")
    try:
        run_workers(directory, directory / "config.yaml", world_size, _threads(world_size), "cpu", TRIAXIS_QUIET="1")
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        speeds = [line["tokens_per_second"] for line in lines if line["kind"] == "step"]
        return statistics.median(speeds[WARM_UP_STEPS:])
    except (WorkerError, OSError, statistics.StatisticsError):
        return 0.0
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
