"""What ranks do in the tests of layouts: module-level functions that a pool sends to every rank of a world."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from launcher.batches import batch_of
from launcher.optim.build import optimizer_factory
from models.decoder import DecoderLayer
from models.moe.telemetry import LayerRouting
from models.objectives import Samples, Vocabulary, build_objective
from models.objectives.config import ReweightConfig
from parallel import compiled
from parallel.check import check_engine, check_model, choose_engine
from parallel.config import ParallelConfig
from parallel.engines.base import Batch, Engine, EngineSpec
from parallel.engines.fsdp import FsdpEngine
from parallel.engines.pipeline import unwatched
from parallel.engines.select import build_engine
from parallel.mesh import Mesh
from parallel.profile import Span, watched
from tests.parallel.cases import (
    DOCUMENT_END,
    LENGTH,
    OBJECTIVES,
    ORDINARY,
    SEQUENCES,
    SPECIAL,
    VOCABULARY,
    Case,
    documents_of_step,
    pairs_of_step,
    prefix_of_step,
    tokens_of_step,
    weights_of_step,
)

CPU = torch.device("cpu")


@dataclass
class Curve:
    """What a training run reported on one rank."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    routing: list[tuple[LayerRouting, ...]] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    state: dict[str, float] = field(default_factory=dict)


@contextmanager
def laid_out(case: Case) -> Iterator[tuple[Engine, Mesh]]:
    """The engine of a case over the whole world.

    Closed only where all went well: closing is collective, and a rank that failed must tell its error, not wait.
    """
    mesh = Mesh(case.parallel, CPU)
    compiled.BACKEND = case.backend
    engine = build_engine(spec_of(case, mesh), mesh)
    yield engine, mesh
    engine.close()
    mesh.close()
    del engine
    gc.collect()


def spec_of(case: Case, mesh: Mesh) -> EngineSpec:
    """What an engine is built from, checked as the launcher does."""
    config, _ = choose_engine(mesh.config, mesh.world_size)
    check_engine(config, case.precision, "cpu", mesh.world_size, case.optimizer.master)
    check_model(config, case.model, LENGTH)
    return EngineSpec(
        model=case.model,
        parallel=config,
        precision=case.precision,
        optimizer=optimizer_factory(case.optimizer, case.kernels, case.seed, case.model),
        kernels=case.kernels,
        master=case.optimizer.master,
        clip_norm=case.optimizer.clip_norm,
        micro_batch=case.micro_batch,
        micro_batches=SEQUENCES // (case.micro_batch * mesh.config.data),
        sequence_length=LENGTH,
        seed=case.seed,
        reweight=OBJECTIVES[case.objective][0].reweight if case.objective else ReweightConfig(),
        loss=case.loss,
    )


def batch_of_step(step: int, mesh: Mesh, case: Case | None = None) -> Batch:
    """This data rank's rows of a step: what the case's objective makes of them, or every next token; with made-up documents and
    prefixes where the model sees prefixes, and packed pairs, of which only the decoder's part is predicted, where it has an
    encoder."""
    rows = SEQUENCES // mesh.config.data
    start = mesh.place.data * rows
    own = slice(start, start + rows)
    tokens, weights = tokens_of_step(step)[own], weights_of_step(step)[own]
    if case is not None and case.objective:
        indices = np.arange(step * SEQUENCES + start, step * SEQUENCES + start + rows)
        samples = Samples((tokens % ORDINARY).numpy(), indices, weights.numpy())
        vocabulary = Vocabulary(VOCABULARY, DOCUMENT_END, SPECIAL)
        example = build_objective(OBJECTIVES[case.objective][0], vocabulary, case.seed, case.model.encoder_length)(
            samples
        )
        return batch_of(example, step * SEQUENCES + start)
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, step * SEQUENCES + start)
    if case is not None and case.model.prefix_mask:
        return replace(batch, documents=documents_of_step(step)[own], prefix=prefix_of_step(step)[own])
    if case is not None and case.model.encoder_layers:
        weights[:, : case.model.encoder_length] = 0
        return replace(batch, documents=pairs_of_step(step, case.model.encoder_length)[own])
    return batch


def run_steps(case: Case, engine: Engine, mesh: Mesh, steps: range, curve: Curve) -> None:
    """Train over some steps and note what the engine says."""
    for step in steps:
        result = engine.step(batch_of_step(step, mesh, case), case.optimizer.learning_rate)
        curve.losses.append(result.loss)
        curve.norms.append(result.grad_norm)
        curve.skipped.append(result.skipped)
        curve.routing.append(result.routing)


def validate(case: Case, engine: Engine, mesh: Mesh, curve: Curve) -> None:
    """Note validation loss and the logits after some position of some text."""
    loss, tokens = engine.evaluate(batch_of_step(1000, mesh, case))
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


@dataclass(frozen=True)
class Fault:
    """A gradient that is not finite: of one parameter, on one rank, in one step."""

    step: int
    rank: int
    parameter: str
    value: float


@dataclass
class FaultyCurve(Curve):
    """A curve with the bits of all state before and after the faulty step, and at the end."""

    before: str = ""
    after: str = ""
    end: str = ""
    struck: int = 0


def train_with_fault(case: Case, steps: list[int], fault: Fault) -> FaultyCurve:
    """Train over some steps; in the fault's step, on its rank, every gradient of its parameter is spoilt."""
    curve = FaultyCurve()
    with laid_out(case) as (engine, mesh):
        for step in steps:
            handle = None
            if step == fault.step:
                curve.before = digest(engine)
                handle = _spoil(engine, fault, curve) if mesh.rank == fault.rank else None
            run_steps(case, engine, mesh, range(step, step + 1), curve)
            if step == fault.step:
                curve.after = digest(engine)
            if handle is not None:
                handle.remove()
        curve.end, curve.state = digest(engine), engine.state()
    return curve


def _spoil(engine: Engine, fault: Fault, curve: FaultyCurve) -> RemovableHandle:
    if isinstance(engine, FsdpEngine):  # what autograd fills is not there between steps: spoil the reduced shard
        (sharded,) = (shard.sharded for shard in engine.shards if shard.name == fault.parameter and not shard.copy)

        def spoil_shard(parameter: Tensor) -> None:
            curve.struck += 1
            parameter.grad.to_local().view(-1)[-1] = fault.value  # type: ignore[union-attr]

        return sharded.register_post_accumulate_grad_hook(spoil_shard)
    parameter = dict(engine.named_parameters())[fault.parameter]

    def hook(gradient: Tensor) -> Tensor:
        curve.struck += 1
        spoilt = gradient.clone()
        spoilt.view(-1)[-1] = fault.value  # one element is enough
        return spoilt

    return parameter.register_hook(hook)


def digest(engine: Engine) -> str:
    """A hash of every bit of state on this rank: master weights, moments, and the weights that the model runs with."""
    found = hashlib.sha256()
    for piece in engine.pieces(for_saving=False):
        found.update(f"{piece.name}{piece.offset}".encode())
        found.update(_bytes(piece.tensor))
    for name, parameter in engine.named_parameters():
        found.update(name.encode())
        found.update(_bytes(getattr(parameter, "ds_tensor", parameter)))  # under ZeRO 3 the own share
    return found.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def activation_lengths(case: Case) -> list[int]:
    """Sequence length of what each decoder layer of this rank gives on, in one forward pass."""
    lengths: list[int] = []
    with laid_out(case) as (engine, mesh):
        layers = [module for module in engine.module.modules() if isinstance(module, DecoderLayer)]
        for layer in layers:
            layer.register_forward_hook(lambda module, inputs, output: lengths.append(output.shape[0]))
        engine.evaluate(batch_of_step(0, mesh))
    return lengths


@dataclass
class ScaledCurve(Curve):
    """A curve with the loss scale after each step."""

    scales: list[float] = field(default_factory=list)


def train_watching_scale(case: Case, steps: int) -> ScaledCurve:
    """Train and note the loss scale after each step."""
    curve = ScaledCurve()
    with laid_out(case) as (engine, mesh):
        for step in range(steps):
            run_steps(case, engine, mesh, range(step, step + 1), curve)
            curve.scales.append(engine.state()["loss_scale"])
        curve.state = engine.state()
    return curve


def watch_step(case: Case) -> tuple[list[Span], int, list[str]]:
    """Spans of the second step, how many there are after the third, and what is left on the engine of the watch."""
    with laid_out(case) as (engine, mesh):
        run_steps(case, engine, mesh, range(1), Curve())
        with watched(engine) as spans:
            run_steps(case, engine, mesh, range(1, 2), Curve())
        seen = list(spans)
        run_steps(case, engine, mesh, range(2, 3), Curve())
        if isinstance(engine, FsdpEngine):
            left = [] if engine.pipeline.watch is unwatched else ["watch"]
        else:
            left = [name for name in vars(engine.engine) if name == "_INSTRUCTION_MAP"]
    return seen, len(spans), left


@dataclass
class MeshSeen:
    """A mesh as one rank sees it. place, topology: (tensor, data, pipeline), by megatron-core and by DeepSpeed,
    whose data axis is our replicas; places: every field of the Place."""

    place: tuple[int, int, int]
    places: dict[str, int]
    topology: tuple[int, int, int]
    data: int
    groups: dict[str, list[int]]
    first: bool
    last: bool
    sum_over_data: float
    any_rank: tuple[bool, bool]
    table: str


def describe_mesh(config: ParallelConfig) -> MeshSeen:
    """All that a mesh tells."""
    mesh = Mesh(config, CPU)
    degrees = mesh.config
    topology = PipeModelDataParallelTopology(num_pp=degrees.pipeline, num_mp=degrees.tensor, num_dp=degrees.replicas)
    there = topology.get_coord(mesh.rank)
    axes = ("tensor", "data", "pipeline", "model", "context", "replica", "expert", "expert_data")
    seen = MeshSeen(
        place=(mesh.place.tensor, mesh.place.data, mesh.place.pipeline),
        places=vars(mesh.place),
        topology=(there.model, there.data, there.pipe),
        data=degrees.data,
        groups={axis: dist.get_process_group_ranks(getattr(mesh, f"{axis}_group")) for axis in axes},
        first=mesh.first_stage,
        last=mesh.last_stage,
        sum_over_data=mesh.sum_over_data(float(mesh.rank)),
        any_rank=(mesh.any_rank(mesh.rank == mesh.world_size - 1), mesh.any_rank(False)),
        table=mesh.table(),
    )
    mesh.close()
    return seen


def gloo_loops(config: ParallelConfig) -> tuple[int, int]:
    """(process groups, threads that wait for gloo's sockets) of this process while it has a mesh."""
    mesh = Mesh(config, CPU)
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    found = len(dist.distributed_c10d._world.pg_map), names.count("gloo_tcp_loop")
    mesh.close()
    return found


def census() -> dict[str, Any]:
    """What this process holds of the machine, and whatever of engines is still alive in it."""
    gc.collect()
    alive = gc.get_objects()
    kinds = ("DeepSpeedEngine", "PipelineEngine", "TorchEngine", "FsdpEngine", "Decoder", "Mesh", "AdamW")
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "groups": len(dist.distributed_c10d._world.pg_map),
        "engines": [type(found).__name__ for found in alive if type(found).__name__ in kinds],
        "parameters": sum(type(found) is torch.nn.Parameter for found in alive),
        "inductor": "torch._inductor.compile_fx" in sys.modules,
    }
