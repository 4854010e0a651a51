"""A watched step: every action of the schedule once, none before what it waits for, and the engine as it was afterwards."""

from __future__ import annotations

import itertools

import pytest

from parallel.config import ParallelConfig
from parallel.timeline import BACKWARD, FORWARD, INPUT, WEIGHT, timeline
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import SEQUENCES, Case

LAYOUTS = [
    ParallelConfig("deepspeed", 1, 2, 1),
    ParallelConfig("torch", 1, 2, 1),
    ParallelConfig("torch", 1, 2, 1, schedule="interleaved_1f1b", virtual_stages=2),
    ParallelConfig("torch", 1, 2, 1, schedule="zbv"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.engine}-{layout.schedule}")
def test_the_actions_of_a_watched_step(layout: ParallelConfig, pools: Pools) -> None:
    case = Case("llama", layout, micro_batch=1)
    ranks = pools.run(case.world_size, jobs.watch_step, case=case)
    for rank, (spans, later, attributes) in enumerate(ranks):
        # torch's first stage has no input to give a gradient to, and may do all of backward at once
        expected = {
            (slot.stage, slot.kind, slot.micro_batch) for slot in timeline(layout, SEQUENCES) if slot.rank == rank
        }
        assert {(span.stage, span.kind, span.micro_batch) for span in spans} == expected
        assert len(spans) == len(expected)
        assert all(one.end <= other.begin for one, other in itertools.pairwise(spans)), "one action at a time"
        assert later == len(spans), "nothing is noted any more"
        assert not attributes, "the engine's own methods are back"
    ends = {(s.kind, s.stage, s.micro_batch): s for spans, *_ in ranks for s in spans}
    for (kind, stage, micro), span in ends.items():
        if kind == FORWARD and stage:
            assert ends[FORWARD, stage - 1, micro].end <= span.begin
        if kind in (BACKWARD, INPUT):
            assert ends[FORWARD, stage, micro].end <= span.begin
        if kind == WEIGHT:
            assert ends[INPUT, stage, micro].end <= span.begin
