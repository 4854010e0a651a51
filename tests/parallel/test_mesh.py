"""The mesh: places, groups, table, and that a closed layout leaves nothing behind."""

from __future__ import annotations

import pytest

from parallel.config import ParallelConfig
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import LENGTH, Case

DEGREES = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2), (2, 2, 2), (4, 2, 1), (1, 4, 2)]


@pytest.mark.parametrize("degrees", DEGREES, ids=str)
def test_ranks_run_tensor_first_then_data_then_pipeline(degrees: tuple[int, int, int], pools: Pools) -> None:
    """Place and groups of every rank, told by megatron-core, by DeepSpeed's topology and by the formula, agree."""
    tensor, pipeline, data = degrees
    config = ParallelConfig(tensor=tensor, pipeline=pipeline)
    for rank, found in enumerate(pools.run(tensor * pipeline * data, jobs.describe_mesh, config=config)):
        place = (rank % tensor, rank // tensor % data, rank // (tensor * data))
        assert found.place == found.topology == place
        assert found.data == data
        t, d, p = place
        assert found.groups == {
            "context": [rank],
            "expert": [rank],
            "replica": found.groups["data"],
            "expert_data": found.groups["data"],
            "tensor": [i + tensor * (d + data * p) for i in range(tensor)],
            "data": [t + tensor * (i + data * p) for i in range(data)],
            "pipeline": [t + tensor * (d + data * i) for i in range(pipeline)],
            "model": [i + tensor * (d + data * q) for q in range(pipeline) for i in range(tensor)],
        }
        assert (found.first, found.last) == (p == 0, p == pipeline - 1)
        assert found.sum_over_data == sum(found.groups["data"])
        assert found.any_rank == (True, False)


WIDE = [
    (2, 2, 2, 1, 2),
    (1, 4, 2, 1, 2),
    (2, 2, 1, 2, 2),
    (1, 2, 4, 1, 8),
    (1, 2, 2, 2, 4),
    (1, 1, 4, 2, 2),
    (2, 4, 1, 1, 1),
]


@pytest.mark.parametrize("degrees", WIDE, ids=str)
def test_context_lies_between_tensor_and_data_and_experts_over_both(degrees: tuple[int, ...], pools: Pools) -> None:
    """Place and groups of every rank are those of the formulas at the head of mesh.py."""
    tensor, context, data, pipeline, expert = degrees
    config = ParallelConfig(tensor=tensor, pipeline=pipeline, context=context, expert=expert)
    replicas = context * data

    def rank_of(t: int, replica: int, p: int) -> int:
        return t + tensor * (replica + replicas * p)

    for rank, found in enumerate(pools.run(tensor * replicas * pipeline, jobs.describe_mesh, config=config)):
        t, r, p = rank % tensor, rank // tensor % replicas, rank // (tensor * replicas)
        c, d, e, x = r % context, r // context, r % expert, r // expert
        assert found.data == data
        assert found.places == {
            "tensor": t,
            "context": c,
            "data": d,
            "pipeline": p,
            "replica": r,
            "expert": e,
            "expert_data": x,
        }
        assert found.topology == (t, r, p)
        assert found.groups == {
            "tensor": [rank_of(i, r, p) for i in range(tensor)],
            "context": [rank_of(t, i + context * d, p) for i in range(context)],
            "data": [rank_of(t, c + context * i, p) for i in range(data)],
            "replica": [rank_of(t, i, p) for i in range(replicas)],
            "pipeline": [rank_of(t, r, i) for i in range(pipeline)],
            "model": [rank_of(i, r, q) for q in range(pipeline) for i in range(tensor)],
            "expert": [rank_of(t, i + expert * x, p) for i in range(expert)],
            "expert_data": [rank_of(t, e + expert * i, p) for i in range(replicas // expert)],
        }
        assert found.sum_over_data == sum(found.groups["replica"])
        titles, *lines = found.table.splitlines()[1:]
        seen = dict(zip(titles.split(), map(int, lines[rank].split()), strict=True))
        shown = ["tensor", "data", "pipeline", *(["context"] * (context > 1)), *(["expert"] * (expert > 1))]
        assert seen == {"rank": rank, **{axis: found.places[axis] for axis in shown}}
    told = f"tensor {tensor} x pipeline {pipeline} x data {data}" + (f" x context {context}" if context > 1 else "")
    assert told in found.table


def test_the_table_lists_every_rank(pools: Pools) -> None:
    (found, *_) = pools.run(8, jobs.describe_mesh, config=ParallelConfig(tensor=2, pipeline=2))
    head, titles, *ranks = found.table.splitlines()
    assert head == "mesh  tensor 2 x pipeline 2 x data 2 = 8 processes"
    assert titles.split() == ["rank", "tensor", "data", "pipeline"]
    assert [tuple(map(int, line.split())) for line in ranks] == [(r, r % 2, r // 2 % 2, r // 4) for r in range(8)]
    (alone,) = pools.run(1, jobs.describe_mesh, config=ParallelConfig())
    assert alone.table == "mesh  tensor 1 x pipeline 1 x data 1 = 1 process"


def test_sequence_parallelism_cuts_what_flows_between_layers(pools: Pools) -> None:
    for cut in (False, True):
        layout = Case("post").laid_out(tensor=2, sequence_parallel=cut)
        for lengths in pools.run(2, jobs.activation_lengths, case=layout):
            assert set(lengths) == {LENGTH // 2 if cut else LENGTH}


def test_the_context_axis_cuts_what_flows_between_layers(pools: Pools) -> None:
    for method in ("ring", "ulysses"):
        layout = Case("post").laid_out(tensor=2, sequence_parallel=True, context=2, context_method=method)
        for lengths in pools.run(4, jobs.activation_lengths, case=layout):
            assert set(lengths) == {LENGTH // 4}


def test_one_thread_waits_for_all_groups(pools: Pools) -> None:
    """A device of its own for each group would be a thread that wakes a hundred times a second."""
    for groups, loops in pools.run(4, jobs.gloo_loops, config=ParallelConfig(tensor=2, pipeline=2)):
        assert groups > 10
        assert loops == 1


LEAVING = [
    {"engine": "torch"},
    {"data": 2, "zero_stage": 0},
    {"data": 2, "zero_stage": 1},
    {"data": 2, "zero_stage": 2, "offload_optimizer": True},
    {"data": 2, "zero_stage": 3},
    {"data": 2, "zero_stage": 3, "offload_optimizer": True},
    {"pipeline": 2, "zero_stage": 0},
    {"pipeline": 2, "zero_stage": 1},
    {"tensor": 2, "sequence_parallel": True},
    {"engine": "torch", "data": 2, "zero_stage": 3},
    {"engine": "torch", "data": 2, "zero_stage": 0},
    {"engine": "torch", "pipeline": 2, "schedule": "zbv"},
    {"context": 2, "data": 1},
    {"engine": "torch", "context": 2, "data": 1, "context_method": "ulysses"},
]


@pytest.mark.parametrize("options", LEAVING, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))
def test_a_closed_engine_leaves_nothing_behind(options: dict, pools: Pools) -> None:
    """No threads, sockets, process groups, engines, optimizers or parameters: a run changes layout with every phase."""
    case = Case("gpt").laid_out(**options)
    pools.discard(case.world_size)  # a fresh world: the first layout makes what torch keeps for ever
    pools.run(case.world_size, jobs.train, case=case, steps=2)
    before = pools.run(case.world_size, jobs.census)
    pools.run(case.world_size, jobs.train, case=case, steps=2)
    after = pools.run(case.world_size, jobs.census)
    for one, other in zip(before, after, strict=True):
        assert one["groups"] == other["groups"] == 1, "only the world is left"
        assert one["engines"] == other["engines"] == []
        assert one["parameters"] == other["parameters"] == 0
        assert other["threads"] <= one["threads"]
        assert other["files"] <= one["files"]
        assert not one["inductor"], "a second or more of each process, for nothing where no block is compiled"
