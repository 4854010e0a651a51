"""What ranks do in the tests of layouts: module-level functions that a pool sends to every rank of a world."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from launcher.optim.build import optimizer_factory
from parallel.check import check_model
from parallel.engines.base import Batch, Engine, EngineSpec
from parallel.engines.select import build_engine, check_engine, choose_engine
from parallel.mesh import Mesh
from tests.parallel.cases import LENGTH, SEQUENCES, Case, tokens_of_step, weights_of_step

CPU = torch.device("cpu")


@dataclass
class Curve:
    """What a training run reported on one rank."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    state: dict[str, float] = field(default_factory=dict)


@contextmanager
def laid_out(case: Case) -> Iterator[tuple[Engine, Mesh]]:
    """The engine of a case over the whole world.

    Closed only where all went well: closing is collective, and a rank that failed must tell its error, not wait.
    """
    mesh = Mesh(case.parallel, CPU)
    engine = build_engine(spec_of(case, mesh), mesh)
    yield engine, mesh
    engine.close()
    mesh.close()
    del engine
    gc.collect()


def spec_of(case: Case, mesh: Mesh) -> EngineSpec:
    """What an engine is built from, checked as the launcher does."""
    config, _ = choose_engine(mesh.config, mesh.world_size)
    check_engine(config, case.precision, "cpu", mesh.world_size)
    check_model(config, case.model, LENGTH)
    return EngineSpec(
        model=case.model,
        parallel=config,
        precision=case.precision,
        optimizer=optimizer_factory(case.optimizer),
        clip_norm=case.optimizer.clip_norm,
        micro_batch=case.micro_batch,
        micro_batches=SEQUENCES // (case.micro_batch * mesh.config.data),
        sequence_length=LENGTH,
        seed=case.seed,
    )


def batch_of_step(step: int, mesh: Mesh) -> Batch:
    """This data rank's rows of a step."""
    rows = SEQUENCES // mesh.config.data
    start = mesh.place.data * rows
    own = slice(start, start + rows)
    tokens, weights = tokens_of_step(step)[own], weights_of_step(step)[own]
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, step * SEQUENCES + start)


def run_steps(case: Case, engine: Engine, mesh: Mesh, steps: range, curve: Curve) -> None:
    """Train over some steps and note what the engine says."""
    for step in steps:
        result = engine.step(batch_of_step(step, mesh), case.optimizer.learning_rate)
        curve.losses.append(result.loss)
        curve.norms.append(result.grad_norm)
        curve.skipped.append(result.skipped)


def validate(case: Case, engine: Engine, mesh: Mesh, curve: Curve) -> None:
    """Note validation loss and the logits after some position of some text."""
    loss, tokens = engine.evaluate(batch_of_step(1000, mesh))
    curve.validation.append(loss / tokens)
    curve.logits.append(engine.next_logits(tokens_of_step(2000)[: case.micro_batch, :LENGTH], LENGTH // 2)[:1])


def train(case: Case, steps: int = 20) -> Curve:
    """Train from the first step; validate half-way, so that training must not notice, and at the end."""
    curve = Curve()
    with laid_out(case) as (engine, mesh):
        run_steps(case, engine, mesh, range(steps // 2), curve)
        validate(case, engine, mesh, curve)
        run_steps(case, engine, mesh, range(steps // 2, steps), curve)
        validate(case, engine, mesh, curve)
        curve.state = engine.state()
    return curve


def census() -> dict[str, int]:
    """What this process holds of the machine: to see whether jobs leave anything behind."""
    import os

    from torch.distributed import distributed_c10d

    return {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "groups": len(distributed_c10d._world.pg_map),
        "resident_mb": int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20,
    }
