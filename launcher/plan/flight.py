"""What a rank of a pipeline holds at once, by playing its part of the schedule.

A stage holds a micro-batch from its forward to the end of its backward. Where backward is split it holds it to its weight
gradients, and from the input gradient on also the output gradients that those are made of. torch's schedules of several
stages a rank wait for what they have sent at the end of a step, and hold it till then."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES, owner, stage_count, stages_of, stages_per_rank

FORWARD, INPUT, BACKWARD = "forward", "input gradient", "backward"
"""What is done with a micro-batch in a stage; backward ends it, whole or with its weight gradients."""
Actions = list[tuple[int, str]]
ROUNDS = 4
"""Micro-batches for each rank of the pipeline axis after which a schedule repeats itself, and only what was sent grows."""


@dataclass(frozen=True)
class Moment:
    """held, halved: micro-batches of each stage of the rank, in the order of `parallel.schedule.stages_of`, that it holds,
    and of these those whose input gradient is done and whose weight gradients are not. sent: activations and gradients that
    it holds only since it has sent them."""

    held: tuple[int, ...]
    halved: tuple[int, ...]
    sent: int = 0


def moments(config: ParallelConfig, rank: int, micro_batches: int) -> tuple[Moment, ...]:
    """Those in which a rank may hold most: none is covered by another."""
    if config.pipeline == 1:
        return (Moment((1,), (0,)),)
    if config.schedule == "gpipe":
        return (Moment((micro_batches,), (0,)),)
    if config.schedule == "1f1b":
        return (Moment((min(config.pipeline - rank, micro_batches),), (0,)),)
    played = min(micro_batches, ROUNDS * config.pipeline)
    found = _played(config.schedule, config.pipeline, config.virtual_stages, rank, played)
    more = (micro_batches - played) * _sends(config, rank)
    return tuple(Moment(one.held, one.halved, one.sent + more) for one in found)


def _sends(config: ParallelConfig, rank: int) -> int:
    """Activations and gradients of a micro-batch that a rank sends to others."""
    own, last = stages_of(config, rank), stage_count(config) - 1
    return sum(stage < last for stage in own) + sum(stage > 0 and owner(config, stage - 1) != rank for stage in own)


def begun(config: ParallelConfig, rank: int, micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """Of each stage of a rank, in the order of `parallel.schedule.stages_of`, whenever one of them ends its last backward: 0
    before its first, 1 from then to its last, 2 after it. torch sums whole gradients from the first to the last, and reduces
    them at once."""
    if stages_per_rank(config) == 1:
        return ((1,),)
    played = min(micro_batches, ROUNDS * config.pipeline)
    return _begun(config.schedule, config.pipeline, config.virtual_stages, rank, played)


@lru_cache(maxsize=4096)
def _begun(schedule: str, degree: int, virtual: int, rank: int, micro_batches: int) -> tuple[tuple[int, ...], ...]:
    order = _order(schedule, degree, virtual, rank, micro_batches)
    done, found = [0] * (1 + max(stage for stage, _ in order)), []
    for stage, kind in order:
        if kind == BACKWARD:
            done[stage] += 1
            if done[stage] == micro_batches:
                found.append(
                    tuple(
                        0 if not count else 2 if count == micro_batches and at != stage else 1
                        for at, count in enumerate(done)
                    )
                )
    return tuple(found)


@lru_cache(maxsize=4096)
def _played(schedule: str, degree: int, virtual: int, rank: int, micro_batches: int) -> tuple[Moment, ...]:
    config = ParallelConfig(pipeline=degree, data=1, schedule=schedule, virtual_stages=virtual)
    order = _order(schedule, degree, virtual, rank, micro_batches)
    own, last = stages_of(config, rank), stage_count(config) - 1
    onward = [stage < last for stage in own]
    back = [stage > 0 and owner(config, stage - 1) != rank for stage in own]
    held, halved, sent, seen = [0] * len(own), [0] * len(own), 0, set()
    for stage, kind in order:
        if kind == FORWARD:
            held[stage] += 1
            continue
        seen.add(Moment(tuple(held), tuple(halved), sent))  # backward is about to begin
        if kind == INPUT:
            halved[stage] += 1
            sent += back[stage]
        else:
            whole = not halved[stage]
            halved[stage] -= not whole
            held[stage] -= 1
            sent += onward[stage] + (whole and back[stage])
    different = sorted(seen, key=lambda one: (one.held, one.halved, one.sent))
    numbers = np.array([(*one.held, *one.halved, one.sent) for one in different])
    covered = (numbers[:, None] >= numbers[None]).all(axis=2).sum(axis=0) > 1  # by another than itself
    return tuple(one for one, less in zip(different, covered, strict=True) if not less)


def _order(schedule: str, degree: int, virtual: int, rank: int, micro_batches: int) -> Actions:
    """(place of the stage on this rank, what is done) in order, of a schedule of several stages a rank."""
    if SCHEDULES[schedule].splits_backward:
        return _split(schedule, degree, virtual, micro_batches)[rank]
    config = ParallelConfig(pipeline=degree, data=1, schedule=schedule, virtual_stages=virtual)
    return _interleaved(config, rank, micro_batches)


def _interleaved(config: ParallelConfig, rank: int, micro_batches: int) -> Actions:
    """The same where backward is whole: as many forwards as fill the pipeline, then one of each, then
    what is left (arXiv 2104.04473; rounds as torch has them)."""
    degree, stages = config.pipeline, stages_per_rank(config)
    in_round = micro_batches // max(1, micro_batches // degree)
    total = micro_batches * stages
    ahead = min((stages - 1) * in_round + 2 * (degree - 1 - rank), total)
    forwards = [(step // in_round % stages, FORWARD) for step in range(total)]
    backwards = [(stages - 1 - step // in_round % stages, BACKWARD) for step in range(total)]
    found = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        found += [forward, backward]
    return found + backwards[total - ahead :]


@lru_cache(maxsize=128)
def _split(schedule: str, degree: int, virtual: int, micro_batches: int) -> list[Actions]:
    """The same of every rank where backward is split, as torch orders it."""
    from parallel.timeline import actions  # torch

    config = ParallelConfig(pipeline=degree, data=1, schedule=schedule, virtual_stages=virtual)
    found = []
    for rank, order in enumerate(actions(config, micro_batches)):
        place = {stage: at for at, stage in enumerate(stages_of(config, rank))}
        found.append([(place[stage], kind if kind in (FORWARD, INPUT) else BACKWARD) for stage, kind, _ in order])
    return found
