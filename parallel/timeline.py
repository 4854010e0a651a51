"""What each rank of a pipeline does when: torch's own schedule, played with given costs of stages and free communication.

Relied on (and listed by the contract test): `get_schedule_ops`, which gives a schedule's actions without any stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES, stage_count, stages_per_rank

FORWARD, INPUT, WEIGHT, BACKWARD = "forward", "input gradient", "weight gradient", "backward"
KINDS = {"F": FORWARD, "I": INPUT, "W": WEIGHT, "B": BACKWARD}
UNITS = {FORWARD: 1, INPUT: 1, WEIGHT: 1, BACKWARD: 2}
"""Time of each kind in units of a stage's forward: a matrix product has one forward and two backward."""

Action = tuple[int, str, int]
"""Stage, kind, micro-batch."""


@dataclass(frozen=True)
class Slot:
    """One action of a rank. begin, end: in units of the cost of stages."""

    rank: int
    stage: int
    kind: str
    micro_batch: int
    begin: float
    end: float


def timeline(config: ParallelConfig, micro_batches: int, costs: list[float] | None = None) -> list[Slot]:
    """Every action of a step in order of rank and time. costs: forward time of each stage, 1 where none are given."""
    costs = costs or [1.0] * stage_count(config)
    waiting = actions(config, micro_batches)
    done: dict[tuple[str, int, int], float] = {}
    clocks = [0.0] * config.pipeline
    slots: list[Slot] = []
    while any(waiting):
        moved = False
        for rank, left in enumerate(waiting):
            while left:
                stage, kind, micro = left[0]
                needed = [done.get(key) for key in _needs(stage, kind, micro, len(costs))]
                if None in needed:
                    break
                begin = max([clocks[rank], *(time for time in needed if time is not None)])
                clocks[rank] = begin + UNITS[kind] * costs[stage]
                done[_gives(kind), stage, micro] = clocks[rank]
                slots.append(Slot(rank, stage, kind, micro, begin, clocks[rank]))
                left.pop(0)
                moved = True
        assert moved, f"{config.schedule}: ranks wait for one another in a circle"
    return sorted(slots, key=lambda slot: (slot.rank, slot.begin))


def idle_share(slots: list[Slot]) -> float:
    """Share of all ranks' time, from the first action to the last one's end, in which nothing is done."""
    ranks = 1 + max(slot.rank for slot in slots)
    return 1 - sum(slot.end - slot.begin for slot in slots) / (ranks * max(slot.end for slot in slots))


def actions(config: ParallelConfig, micro_batches: int) -> list[list[Action]]:
    """What each rank of the pipeline axis does in a step, in order."""
    if config.schedule == "1f1b":  # torch 2.13 tells its forwards one micro-batch too late on all ranks but the first
        return [_one_forward_one_backward(config.pipeline, rank, micro_batches) for rank in range(config.pipeline)]
    schedule = SCHEDULES[config.schedule]
    stages = None if schedule.single else stages_per_rank(config)
    name = schedule.torch_name.removeprefix("Schedule")
    return [_actions(found) for found in get_schedule_ops(name, config.pipeline, micro_batches, stages)]


def _one_forward_one_backward(ranks: int, rank: int, micro_batches: int) -> list[Action]:
    """As Schedule1F1B runs it: as many forwards as stages are left, then one of each, then the backwards that are left."""
    ahead = min(micro_batches, ranks - rank)
    actions: list[Action] = [(rank, FORWARD, micro) for micro in range(ahead)]
    for micro in range(micro_batches):
        actions.append((rank, BACKWARD, micro))
        if micro + ahead < micro_batches:
            actions.append((rank, FORWARD, micro + ahead))
    return actions


def _actions(actions: list[Any]) -> list[Action]:
    """(stage, kind, micro-batch) of a rank's actions in order; what torch overlaps is done one after the other, and
    reducing gradients takes no time."""
    flat: list[Action] = []
    for action in actions:
        if action is not None:
            parts = action.sub_actions or (action,)
            flat += [
                (part.stage_index, KINDS[part.computation_type.value], part.microbatch_index)
                for part in parts
                if part.computation_type.value in KINDS
            ]
    return flat


def _gives(kind: str) -> str:
    return INPUT if kind == BACKWARD else kind


def _needs(stage: int, kind: str, micro: int, stages: int) -> list[tuple[str, int, int]]:
    """What must be done before: a stage's input from the one before it, its gradient from the one after."""
    if kind == FORWARD:
        return [(FORWARD, stage - 1, micro)] if stage else []
    if kind == WEIGHT:
        return [(INPUT, stage, micro)]
    return [(FORWARD, stage, micro), *([(INPUT, stage + 1, micro)] if stage + 1 < stages else [])]
