"""How long the ranks of a pipeline idle under each schedule, measured beside the theory of `parallel.schedule.bubble`.

Stages that compute could not run side by side on fewer cores than ranks, so these sleep: forward, gradient of the input and
gradient of the weights of a minute linear layer each take a fixed time and no core. All else is real: processes, gloo, torch's
schedules and the engine's own `Pipeline`. What is found beyond theory is overhead: messages, autograd, sleepers that wake late.

Torch puts all of the first stage's backward where its weight gradient stands; that changes no schedule's bubble here.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launcher.bench.world import join_world
from launcher.workers import free_port
from parallel.config import ParallelConfig
from parallel.engines.pipeline import Pipeline
from parallel.mesh import Mesh
from parallel.profile import Span, watch_stages
from parallel.schedule import SCHEDULES, bubble, stages_of, stages_per_rank

VIRTUAL_STAGES = 2  # where a schedule leaves their number free
POSITIONS, WIDTH = 4, 8  # of activations [S, B=1, H]: they travel, but weigh nothing
WARM_UP = 1


@dataclass(frozen=True)
class Naps:
    """What is slept. unit: seconds of a rank's forward of one micro-batch, which the stages of the rank share evenly."""

    unit: float
    micro_batches: int
    steps: int

    @property
    def ideal(self) -> float:
        """Seconds of a step without a bubble: forward and two gradients of every micro-batch."""
        return 3 * self.unit * self.micro_batches


def layout(schedule: str, ranks: int) -> ParallelConfig:
    """A pipeline and nothing else."""
    stages = SCHEDULES[schedule].stages or VIRTUAL_STAGES
    virtual = 1 if SCHEDULES[schedule].stages else stages
    return ParallelConfig("torch", pipeline=ranks, data=1, schedule=schedule, virtual_stages=virtual)


def measure_idle(ranks: int, naps: Naps) -> list[dict[str, Any]]:
    """Figures of every schedule on `ranks` processes."""
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    arguments = (ranks, naps, free_port(), os.getpid(), queue)
    torch.multiprocessing.start_processes(_rank, args=arguments, nprocs=ranks, start_method="spawn", daemon=True)
    found: list[dict[str, Any]] = queue.get()
    return found


def figures_of(schedule: str, ranks: int, naps: Naps, steps: list[list[list[Span]]]) -> dict[str, Any]:
    """Medians over steps, of which each holds every rank's actions. Times are seconds, shares of all ranks' time."""
    theory = bubble(layout(schedule, ranks), naps.micro_batches)
    taken = [duration(step) for step in steps]
    idle = statistics.median(idle_share(step) for step in steps)
    middle = statistics.median(taken)
    return {
        "schedule": schedule,
        "ranks": ranks,
        "stages": ranks * stages_per_rank(layout(schedule, ranks)),
        "theory": theory,
        "idle": idle,
        "step_seconds": middle,
        "against_ideal": middle / naps.ideal,
        "theory_against_ideal": 1 / (1 - theory),
        "against_theory": middle / naps.ideal * (1 - theory),
    }


def duration(step: list[list[Span]]) -> float:
    """Seconds from the first action of any rank to the end of the last one."""
    spans = [span for actions in step for span in actions]
    return max(span.end for span in spans) - min(span.begin for span in spans)


def idle_share(step: list[list[Span]]) -> float:
    """Share of all ranks' time, from the first action to the last one's end, that lies between actions."""
    busy = sum(span.end - span.begin for actions in step for span in actions)
    return 1 - busy / (len(step) * duration(step))


class _Nap(torch.autograd.Function):
    """Its input as it is, after some time; its gradient too."""

    @staticmethod
    def forward(context: Any, x: Tensor, forward: float, backward: float) -> Tensor:  # type: ignore[override]
        context.seconds = backward
        time.sleep(forward)
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        time.sleep(context.seconds)
        return gradient, None, None


class NappingStage(nn.Module):
    """A linear layer whose forward and whose two gradients each last `seconds`, and wherever autograd computes them."""

    def __init__(self, seconds: float, *, first: bool) -> None:
        super().__init__()
        self.seconds = seconds
        self.embedding = nn.Embedding(WIDTH, WIDTH) if first else None
        self.weight = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, S] or activations [S, B, H] to activations [S, B, H]."""
        if self.embedding is not None:
            x = self.embedding(x).transpose(0, 1)
        slow = _Nap.apply(x, self.seconds, self.seconds)
        weight = _Nap.apply(self.weight, 0.0, self.seconds)
        return nn.functional.linear(slow, weight)


def _rank(rank: int, ranks: int, naps: Naps, port: int, parent: int, queue: Any) -> None:
    join_world(rank, ranks, port, parent)
    found = [_measure(schedule, ranks, naps) for schedule in SCHEDULES]
    if rank == 0:
        queue.put(found)
    dist.barrier()
    dist.destroy_process_group()


def _activation(rows: int, length: int) -> tuple[int, ...]:
    return length, rows, WIDTH


def _output(rows: int, length: int) -> torch.Tensor:
    return torch.empty(_activation(rows, length), device="meta")


def _measure(schedule: str, ranks: int, naps: Naps) -> dict[str, Any]:
    config = layout(schedule, ranks)
    mesh = Mesh(config, torch.device("cpu"))
    seconds = naps.unit / stages_per_rank(config)
    held = stages_of(config, mesh.place.pipeline)
    modules: dict[int, nn.Module] = {stage: NappingStage(seconds, first=stage == 0) for stage in held}
    pipeline = Pipeline(
        mesh, modules, lambda logits, rows: logits.sum(), between=_activation, ends=_output, dtype=torch.float32
    )
    tokens = torch.zeros(naps.micro_batches, POSITIONS, dtype=torch.int64)
    steps: list[list[list[Span]]] = []
    for _ in range(WARM_UP + naps.steps):
        spans: list[Span] = []
        release = watch_stages(pipeline, spans)
        mesh.barrier()
        pipeline.step(tokens, 1)
        release()
        everyone: list[Any] = [None] * ranks
        dist.all_gather_object(everyone, spans)
        steps.append(everyone)
    mesh.close()
    return figures_of(schedule, ranks, naps, steps[WARM_UP:])
