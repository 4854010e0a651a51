"""Pipeline schedules by name: how many stages a rank holds, which ones, and what micro-batches they allow. No torch here.

GPipe (arXiv 1811.06965); 1F1B (PipeDream-flush, 2006.09503); interleaved 1F1B (2104.04473); zero bubble and its V form
(2401.10241, 2405.15362); DualPipeV (the V form of 2412.19437's schedule).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel.config import ParallelConfig


@dataclass(frozen=True)
class Schedule:
    """What a schedule needs. torch_name: its class in torch.distributed.pipelining."""

    torch_name: str
    stages: int  # on a rank; 0: as many as parallel.virtual_stages says
    v_shaped: bool = False  # rank r holds stages r and 2P - 1 - r, so the first and the last stage share a rank
    single: bool = False  # torch's class takes one stage, not a list
    splits_backward: bool = False  # gradients of weights are computed apart from those of inputs


SCHEDULES = {
    "gpipe": Schedule("ScheduleGPipe", 1, single=True),
    "1f1b": Schedule("Schedule1F1B", 1, single=True),
    "interleaved_1f1b": Schedule("ScheduleInterleaved1F1B", 0),
    "interleaved_zero_bubble": Schedule("ScheduleInterleavedZeroBubble", 0, splits_backward=True),
    "zbv": Schedule("ScheduleZBVZeroBubble", 2, v_shaped=True, splits_backward=True),
    "dualpipev": Schedule("ScheduleDualPipeV", 2, v_shaped=True, splits_backward=True),
}


def stages_per_rank(config: ParallelConfig) -> int:
    """Stages that each rank of the pipeline axis holds."""
    return SCHEDULES[config.schedule].stages or config.virtual_stages


def stage_count(config: ParallelConfig) -> int:
    """Stages of the whole pipeline."""
    return config.pipeline * stages_per_rank(config) if config.pipeline > 1 else 1


def owner(config: ParallelConfig, stage: int) -> int:
    """Which rank of the pipeline axis holds a stage."""
    turn, place = divmod(stage, config.pipeline)
    backwards = SCHEDULES[config.schedule].v_shaped and turn % 2 == 1
    return config.pipeline - 1 - place if backwards else place


def stages_of(config: ParallelConfig, rank: int) -> list[int]:
    """Stages of one rank of the pipeline axis, in order."""
    degree, bent = config.pipeline, SCHEDULES[config.schedule].v_shaped
    if degree == 1:
        return [0]
    turns = range(stages_per_rank(config))
    return [turn * degree + (degree - 1 - rank if bent and turn % 2 else rank) for turn in turns]


def micro_batch_trouble(config: ParallelConfig, micro_batches: int) -> str:
    """Why a step of so many micro-batches a data rank cannot be scheduled; empty where it can."""
    if config.pipeline == 1:
        return ""
    schedule, degree = SCHEDULES[config.schedule], config.pipeline
    if schedule.v_shaped and micro_batches < stage_count(config):
        return f"needs at least {stage_count(config)} micro-batches a step"
    if config.schedule.startswith("interleaved"):
        rounds = max(1, micro_batches // degree)
        if micro_batches % rounds:
            return f"needs a number of micro-batches that divides by its {rounds} rounds of {degree} or more"
    return ""


def chunks_in_flight(config: ParallelConfig, rank: int, micro_batches: int) -> int:
    """At most how many (stage, micro-batch) pairs a rank of the pipeline axis keeps activations of at once."""
    degree, stages = config.pipeline, stages_per_rank(config)
    if degree == 1:
        return 1
    if config.schedule == "gpipe":
        return micro_batches
    if SCHEDULES[config.schedule].splits_backward:  # weight gradients are put off until all ranks are equally full
        return min(stages * degree + (config.schedule == "dualpipev"), stages * micro_batches)
    if stages == 1:
        return min(degree - rank, micro_batches)
    return min(2 * (degree - rank - 1) + (stages - 1) * degree + 1, stages * micro_batches)


def bubble(config: ParallelConfig, micro_batches: int) -> float:
    """Idle share of a step where every stage takes equal time and communication none: the time in which the pipeline fills.

    Where backward is split its halves take as long as forward, and weight gradients fill what else would be idle.
    `parallel.timeline` finds the same by playing the schedules.
    """
    idle, thirds = config.pipeline - 1, 3 if SCHEDULES[config.schedule].splits_backward else 1
    return idle / (stages_per_rank(config) * micro_batches * thirds + idle)
