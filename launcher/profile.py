"""`train.profile_step`: the real times of one step's pipeline, a file a rank in `<run>/profile`, for `triaxis report`.

A file holds, as JSON: step, machine, zero (seconds of the rank's clock after a barrier before the step), place (tensor, data,
pipeline), parallel (the layout's options), micro_batches, costs (of stages, as the plan estimates them), and
spans [stage, kind, micro_batch, begin, end].
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple

import torch.distributed as dist

from launcher.config import Recipe
from launcher.run import Run
from parallel.engines.base import Engine
from parallel.schedule import stage_count
from parallel.stages import stage_costs

DIRECTORY = "profile"


@contextmanager
def profiled(run: Run, phase: Recipe, engine: Engine) -> Iterator[None]:
    """Around every step: watches the one that the recipe names."""
    step, mesh = run.counters.step + 1, run.mesh
    if step != phase.train.profile_step:
        yield
        return
    from parallel.profile import watched  # torch's pipelines, a tenth of the start of those who have none

    directory = run.directory / DIRECTORY
    if mesh.rank == 0:  # an earlier attempt may have had more ranks
        shutil.rmtree(directory, ignore_errors=True)
    dist.barrier()
    zero = time.monotonic()
    with watched(engine) as spans:
        yield
    told = {
        "step": step,
        "machine": platform.node(),
        "zero": zero,
        "place": asdict(mesh.place),
        "parallel": asdict(mesh.config),
        "micro_batches": 1 + max(span.micro_batch for span in spans),
        "costs": stage_costs(phase.model, stage_count(mesh.config), phase.train.sequence_length),
        "spans": [astuple(span) for span in spans],
    }
    directory.mkdir(exist_ok=True)
    (directory / f"rank_{mesh.rank:05d}.json").write_text(json.dumps(told))
