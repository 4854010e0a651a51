"""Schedules on paper: played action by action they idle as long as theory says, and nothing is done before its time."""

from __future__ import annotations

import itertools

import pytest

from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES, bubble, chunks_in_flight, stage_count
from parallel.timeline import BACKWARD, FORWARD, INPUT, WEIGHT, Slot, idle_share, timeline

LAYOUTS = [
    (ParallelConfig(pipeline=degree, schedule=name, virtual_stages=1 if SCHEDULES[name].stages else 2), micro)
    for name in SCHEDULES
    for degree in (2, 4)
    for micro in (2 * degree, 16)
]


def named(case: object) -> str | None:
    return f"{case.schedule}-{case.pipeline}" if isinstance(case, ParallelConfig) else None


@pytest.mark.parametrize(("layout", "micro"), LAYOUTS, ids=named)
def test_equal_stages_idle_as_long_as_theory_says(layout: ParallelConfig, micro: int) -> None:
    assert idle_share(timeline(layout, micro)) == pytest.approx(bubble(layout, micro), abs=1e-12)


@pytest.mark.parametrize(("layout", "micro"), LAYOUTS, ids=named)
def test_everything_is_done_once_and_after_what_it_needs(layout: ParallelConfig, micro: int) -> None:
    stages = stage_count(layout)
    slots = timeline(layout, micro, [1.0 + 0.3 * stage for stage in range(stages)])
    done: dict[tuple[str, int, int], Slot] = {}
    for slot in slots:
        key = (INPUT if slot.kind == BACKWARD else slot.kind, slot.stage, slot.micro_batch)
        assert key not in done, "twice"
        done[key] = slot
    for stage in range(stages):
        for batch in range(micro):
            forward, gradient = done[FORWARD, stage, batch], done[INPUT, stage, batch]
            assert gradient.begin >= forward.end
            assert stage == 0 or forward.begin >= done[FORWARD, stage - 1, batch].end
            assert stage == stages - 1 or gradient.begin >= done[INPUT, stage + 1, batch].end
            assert gradient.kind == BACKWARD or done[WEIGHT, stage, batch].begin >= gradient.end
    for one, other in itertools.pairwise(slots):
        assert one.rank != other.rank or other.begin >= one.end, "a rank does two things at once"


@pytest.mark.parametrize(("layout", "micro"), LAYOUTS, ids=named)
def test_ranks_keep_as_many_activations_as_planned(layout: ParallelConfig, micro: int) -> None:
    for rank in range(layout.pipeline):
        held = most = 0
        for slot in timeline(layout, micro):
            if slot.rank == rank:
                held += {FORWARD: 1, BACKWARD: -1, WEIGHT: -1}.get(slot.kind, 0)
                most = max(most, held)
        assert most == chunks_in_flight(layout, rank, micro)
        assert held == 0
