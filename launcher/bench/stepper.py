"""Steps of a recipe's model on a layout over text that is drawn, for benches that need an engine and no corpus."""

from __future__ import annotations

from collections.abc import Callable

import torch

from launcher.config import Recipe
from launcher.optim.build import optimizer_factory
from models.config import ModelConfig
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.engines.base import Batch, Engine, EngineSpec
from parallel.engines.select import build_engine
from parallel.mesh import Mesh

VOCABULARY = 1024  # where the recipe takes the tokenizer's


def stepper(recipe: Recipe, model: ModelConfig, config: ParallelConfig, mesh: Mesh) -> Callable[[], None]:
    """One training step of `model` in float32 with two micro-batches a data rank, at the recipe's sizes."""
    engine, batch = engine_and_batch(recipe, model, config, mesh, micro_batches=2)

    def step() -> None:
        engine.step(batch, 1e-4)

    return step


def engine_and_batch(
    recipe: Recipe, model: ModelConfig, config: ParallelConfig, mesh: Mesh, *, micro_batches: int
) -> tuple[Engine, Batch]:
    """An engine in float32, and what its data rank is to train on: int64 [micro_batches x micro_batch, S]."""
    train, rows = recipe.train, recipe.train.micro_batch * micro_batches
    spec = EngineSpec(
        model=model,
        parallel=config,
        precision=PrecisionConfig("fp32"),
        optimizer=optimizer_factory(recipe.optimizer, model=model),
        clip_norm=1.0,
        micro_batch=train.micro_batch,
        micro_batches=micro_batches,
        sequence_length=train.sequence_length,
        seed=1,
    )
    engine = build_engine(spec, mesh)
    generator = torch.Generator().manual_seed(mesh.place.data)
    text = torch.randint(model.vocab_size, (rows, train.sequence_length + 1), generator=generator)
    weights = torch.ones(rows, train.sequence_length)
    return engine, Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), weights, rows * mesh.place.data)
