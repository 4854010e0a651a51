"""Where contenders are prepared: a scratch directory with the frozen recipe, the batches, and each one's environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from launcher.bench.task import PLACE, Task
from launcher.bench.turns import Contender
from launcher.check import check_corpus, check_layout
from launcher.compose import save_recipe
from launcher.config import Recipe, RecipeError
from launcher.life import LifeConfig
from launcher.machine import choose_device, threads_for
from launcher.optim.schedule import Schedule
from launcher.reading import phase_stream
from launcher.workers import free_port
from parallel.engines.base import resolve_precision

LONG = 10**6  # steps: no run of a bench comes to its end
PRELOADED = 256  # batches at most that those who are not Triaxis hold in memory; then they begin again


def at_one_process(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe as one process steps through it: no validation, samples, saves by itself, phases or wandb."""
    quiet = replace(recipe.train, validate_every_tokens=0, sample_every_tokens=0, max_steps=0)
    budget = max(quiet.tokens, LONG * quiet.batch_tokens)
    parallel = replace(
        recipe.parallel,
        tensor=1,
        pipeline=1,
        data=1,
        context=1,
        context_method="ring",
        expert=1,
        sequence_parallel=False,
        schedule="1f1b",
        virtual_stages=1,
        data_replicas=1,
    )
    if parallel.engine != "deepspeed":
        parallel = replace(parallel, engine="torch", zero_stage=1, offload_optimizer=False)
    return check_corpus(
        replace(
            recipe,
            run=replace(recipe.run, name="triaxis", dir=str(directory), init_from="", init_what="weights"),
            train=replace(quiet, tokens=budget),
            parallel=parallel,
            checkpoint=replace(recipe.checkpoint, every_tokens=0, every_minutes=0.0),
            cluster=replace(recipe.cluster, layout="recipe"),
            tracker=replace(recipe.tracker, wandb="off"),
            life=LifeConfig(watchdog=False, health=False),  # contenders sleep between their turns
            phases=(),
        )
    )


class Arena:
    """A context manager that starts contenders, and leaves neither processes nor files behind."""

    def __init__(self, recipe: Recipe, steps: int) -> None:
        """steps: that each contender may make at most."""
        place = Path(recipe.run.dir)
        place.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix=".bench-", dir=place))  # the disk that checkpoints go to
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        try:
            self.recipe = at_one_process(recipe, self.directory)
            check_layout(self.recipe, 1)
            self.task = self._task(steps)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _task(self, steps: int) -> Task:
        recipe, train = self.recipe, self.recipe.train
        device = choose_device(recipe.cluster)
        precision = resolve_precision(recipe.precision, torch.device(device)).name
        if precision == "fp16":
            raise RecipeError("precision.name=fp16: the bench compares fp32 or bf16; set precision=bf16")
        if recipe.model.document_mask:
            raise RecipeError(
                "model.document_mask=true: the other contenders attend across documents; set model.document_mask=false"
            )
        stream = phase_stream(recipe, train.tokens, train.sequence_length, {})
        count = min(steps, PRELOADED)
        places = np.arange(count * train.batch_sequences) * train.sequence_length
        samples = stream.rows(places, train.sequence_length).tokens
        path = self.directory / "batches.npy"
        np.save(path, samples.reshape(count, train.batch_sequences, -1))
        schedule = Schedule(recipe.schedule, recipe.optimizer.learning_rate, train.tokens)
        rates = tuple(schedule.at((step + 1) * train.batch_tokens) for step in range(steps))
        return Task(recipe, device, threads_for(recipe.cluster, 1), precision, rates, path)

    def start(self, module: str, *, name: str = "", asynchronous: bool = True) -> Contender:
        """A contender; name: of its run, where it is Triaxis. `ready` waits for its first step."""
        name = name or module
        run = replace(self.recipe.run, name=name)
        checkpoint = replace(self.recipe.checkpoint, asynchronous=asynchronous)
        recipe = replace(self.recipe, run=run, checkpoint=checkpoint)
        (self.directory / name).mkdir()
        frozen, task = self.directory / name / "config.yaml", self.directory / "task.pickle"
        save_recipe(recipe, frozen)
        self.task.save(task)
        environment = {PLACE: str(task), "OMP_NUM_THREADS": str(self.task.threads), "TRANSFORMERS_VERBOSITY": "error"}
        if self.task.device != "cpu":  # the Trainer would take every GPU that it sees
            environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        if module == "triaxis":
            environment |= self._rank_zero(frozen)
        contender = Contender(f"launcher.bench.{module}", environment, self.directory / name / "output.log")
        self._stack.callback(contender.close)
        return contender

    def _rank_zero(self, frozen: Path) -> dict[str, str]:
        """The environment that `launcher.workers.run_workers` gives to the only rank of a world."""
        return {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "DS_ACCELERATOR": self.task.device,
            "TRIAXIS_RECIPE": str(frozen),
        }
