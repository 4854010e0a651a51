"""Jobs of test_formats_health.py: steps in which operands are counted or not."""

from __future__ import annotations

import torch

from launcher.config import OptimizerConfig
from launcher.optim.build import optimizer_factory
from models.config import ModelConfig
from models.formats import quantize
from models.formats.health import Health, tally
from models.formats.operand import Operand
from models.formats.telemetry import LayerFormats
from parallel.check import choose_engine
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.engines.base import Batch, EngineSpec
from parallel.engines.formats import finish_formats
from parallel.engines.select import build_engine
from parallel.mesh import Mesh

SEQUENCES, LENGTH = 4, 128


def steps(
    parallel: ParallelConfig, model: ModelConfig, precision: PrecisionConfig, recorded: list[bool]
) -> list[tuple[LayerFormats, ...]]:
    """What each step told of formats. recorded: whether it was asked to."""
    mesh = Mesh(parallel, torch.device("cpu"))
    config, _ = choose_engine(mesh.config, mesh.world_size)
    spec = EngineSpec(
        model=model,
        parallel=config,
        precision=precision,
        optimizer=optimizer_factory(OptimizerConfig(), "reference", 1),
        clip_norm=1.0,
        micro_batch=2,
        micro_batches=SEQUENCES // (2 * config.data),
        sequence_length=LENGTH,
        seed=3,
    )
    engine = build_engine(spec, mesh)
    found = [engine.step(_batch(mesh, step, model), 1e-4, formats=asked).formats for step, asked in enumerate(recorded)]
    engine.close()
    mesh.close()
    return found


def added_up(parallel: ParallelConfig, same_layer: bool) -> tuple[tuple[LayerFormats, ...], tuple[LayerFormats, ...]]:
    """(what ranks find together that hold parts of one layer's operand, or layers of their own; what follows from all)."""
    mesh, health = Mesh(parallel, torch.device("cpu")), Health()
    health.start(recording=True)
    parts = torch.randint(-12, 13, (mesh.world_size, 8, 64), generator=torch.Generator().manual_seed(5)) / 2
    names = ["layers.3.up"] * mesh.world_size if same_layer else ["layers.10.up", "layers.2.up"]
    operands = [Operand.of(quantize(part, "mxfp4_e2m1")) for part in parts]
    health.record((names[mesh.rank], *WHICH), 0, parts[mesh.rank], operands[mesh.rank])
    found = finish_formats(health, mesh)
    mesh.close()
    sums = [tally(part, operand) for part, operand in zip(parts, operands, strict=True)]
    if same_layer:
        return found, (LayerFormats.of(names[0], *WHICH, sum(sums[1:], sums[0]).tolist()),)
    return found, tuple(LayerFormats.of(names[rank], *WHICH, sums[rank].tolist()) for rank in (1, 0))


WHICH = ("forward", "activation", "mxfp4_e2m1")


def _batch(mesh: Mesh, step: int, model: ModelConfig) -> Batch:
    rows = SEQUENCES // mesh.config.data
    start = mesh.place.data * rows
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(model.vocab_size, (SEQUENCES, LENGTH + 1), generator=generator)[start : start + rows]
    weights = torch.ones(rows, LENGTH)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, step * SEQUENCES + start)
