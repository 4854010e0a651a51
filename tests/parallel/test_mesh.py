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
            "tensor": [i + tensor * (d + data * p) for i in range(tensor)],
            "data": [t + tensor * (i + data * p) for i in range(data)],
            "pipeline": [t + tensor * (d + data * i) for i in range(pipeline)],
            "model": [i + tensor * (d + data * q) for q in range(pipeline) for i in range(tensor)],
        }
        assert (found.first, found.last) == (p == 0, p == pipeline - 1)
        assert found.sum_over_data == sum(found.groups["data"])
        assert found.any_rank == (True, False)


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
