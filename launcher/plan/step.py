"""Seconds of one training step under a layout, from the products, passes and transfers that it consists of.

Nothing here looks at a clock or a device, and nothing is fitted: see chips.py, networks.py and software.py for the constants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from launcher.plan.errors import PlanError
from launcher.plan.layers import Cost, Parts, cut_of, kinds_of_blocks, left_of, total_of
from launcher.plan.machine import Machine
from launcher.plan.parameters import bounds_of
from launcher.plan.products import layer_kinds
from launcher.plan.traffic import (
    Held,
    Traffic,
    exposed,
    held_of,
    message_of,
    send_seconds,
    sharing_of,
    traffic_of,
)
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES, stage_count, stages_of, stages_per_rank

PARTS = {
    "products": "products of linear layers and the head",
    "attention": "attention cores",
    "passes": "element-wise passes over memory",
    "recompute": "what backward computes again",
    "tensor": "traffic of the tensor axis",
    "context": "traffic of the context axis",
    "expert": "traffic of the expert axis",
    "sends": "sends between pipeline stages",
    "bubble": "waiting for other stages",
    "data": "traffic of the data axis that nothing hides",
    "optimizer": "the update",
}
"""What a step's seconds are spent on, in the order in which bars are stacked."""


@dataclass(frozen=True)
class Work:
    """What is trained, whatever the layout. sequence: tokens of one; batch: sequences of a step."""

    model: ModelConfig
    sequence: int
    batch: int
    micro_batch: int
    fused_loss: bool = False
    even_stages: bool = False
    """Stages have as many layers each, embedding and head on top of theirs (Megatron), instead of as even a load as can be."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.sequence

    def micro_batches(self, parallel: ParallelConfig) -> int:
        """Micro-batches of a step on each data rank."""
        return self.batch // (self.micro_batch * parallel.data)


@dataclass(frozen=True)
class Step:
    """One step. parts: seconds of the slowest pipeline rank by PARTS, which add up to `seconds`."""

    seconds: float
    parts: Parts
    stages: tuple[tuple[float, float], ...]
    """Forward and backward seconds of each stage for one micro-batch, without sends."""
    traffic: tuple[Traffic, ...]
    """What a rank sends in a step, by axis."""
    held: Held
    """Weights of the slowest rank, before ZeRO."""

    @property
    def bubble(self) -> float:
        """Share of the step in which the slowest rank waits for others."""
        return self.parts["bubble"] / self.seconds


def step_of(work: Work, parallel: ParallelConfig, machine: Machine) -> Step:
    """The step of a resolved layout (no `data=0`)."""
    model, micro_batches = work.model, work.micro_batches(parallel)
    cut = cut_of(parallel, work.micro_batch, work.sequence, work.fused_loss)
    stages = _stages(model, work.sequence, stage_count(parallel), work.even_stages)
    known = {counts: total_of(dict(counts), model, cut, machine) for counts in set(stages)}
    costs = [known[counts] for counts in stages]
    whole = [cost.total for cost in costs]
    ranks = [stages_of(parallel, rank) for rank in range(parallel.pipeline)]
    totals = [sum(whole[stage] for stage in own) for own in ranks]
    slowest = max(range(len(ranks)), key=totals.__getitem__)
    counts = _merged(stages[stage] for stage in ranks[slowest])
    load = total_of(counts, model, cut, machine)
    parts = _parts(load, micro_batches)
    traffic = traffic_of(counts, model, cut, parallel, micro_batches, machine)
    if parallel.pipeline > 1:
        send = send_seconds(model, cut, parallel, machine)
        each, halves = stages_per_rank(parallel), 3 if SCHEDULES[parallel.schedule].splits_backward else 1
        sends = 2 * each * micro_batches
        parts["sends"] = sends * send * left_of(float(machine.software.sends_hidden))
        parts["bubble"] = (sum(totals) - totals[slowest]) / (each * halves) + 2 * (
            parallel.pipeline - 1
        ) * send / halves
        link = "network" if machine.stages_cross(parallel) else "node"
        traffic.append(Traffic("pipeline", "sends", sends * message_of(model, cut, machine), link, sends * send))
    held = held_of(counts, model, cut)
    sharing = sharing_of(held, parallel, micro_batches, machine)
    parts["data"] = exposed(sharing, sum(load.forward.values()), sum(load.backward.values()), parallel, machine)
    passes, memory = machine.software.passes, machine.rates.memory
    parts["passes"] += held.all * passes.accumulate * micro_batches / memory
    parts["optimizer"] = sharing.updated * passes.optimizer / memory
    if parallel.replicas > 1:
        what = ("all-reduce", "reduce-scatter and gather")[parallel.zero_stage > 0]
        traffic.append(Traffic("data", what, sharing.bytes, sharing.group.link, sharing.seconds))
    halves_of = {counts: (sum(cost.forward.values()), sum(cost.backward.values())) for counts, cost in known.items()}
    times = tuple(halves_of[counts] for counts in stages)
    return Step(sum(parts.values()), parts, times, tuple(traffic), held)


def _merged(stages: Iterable[tuple[tuple[str, int], ...]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for counts in stages:
        found.update(dict(counts))
    return dict(found)


def _parts(load: Cost, micro_batches: int) -> Parts:
    found = dict.fromkeys(PARTS, 0.0)
    for half in load:
        for name, seconds in half.items():
            found[name] += seconds * micro_batches
    return found


@lru_cache(maxsize=512)
def _stages(model: ModelConfig, sequence: int, stages: int, even: bool) -> tuple[tuple[tuple[str, int], ...], ...]:
    """How many blocks of each kind every stage has."""
    kinds = kinds_of_blocks(model, layer_kinds(model))
    bounds = _even_bounds(model, stages) if even else list(bounds_of(model, stages, sequence))
    counts = [Counter(kind for kind in kinds[bounds[i] : bounds[i + 1]] if kind) for i in range(stages)]
    return tuple(tuple(count.items()) for count in counts)


def _even_bounds(model: ModelConfig, stages: int) -> list[int]:
    """As many layers on each stage; blocks 0 and 1 are the embedding and the positions."""
    if model.encoder_layers or model.layers % stages:
        raise PlanError(f"parallel.pipeline: {stages} even stages do not divide model.layers={model.layers}")
    each, count = model.layers // stages, model.layers + (4 if model.norm_position == "pre" else 3)
    return [0, *(2 + each * stage for stage in range(1, stages)), count]
