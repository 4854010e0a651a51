"""Where a pipeline is cut: the best cut there is, against every cut there is."""

from __future__ import annotations

import itertools
import random

import pytest

from models.config import ModelConfig
from models.decoder import block_costs, block_count, build_block
from models.layers import PlainLayers
from parallel.config import ParallelConfig
from parallel.paper import stage_bounds
from parallel.stages import cut_stages


def largest(costs: list[float], bounds: list[int]) -> float:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("seed", range(20))
def test_no_cut_has_a_faster_slowest_stage(seed: int) -> None:
    numbers = random.Random(seed)
    costs = [numbers.choice([0.01, 1.0, 1.0, numbers.uniform(0, 5)]) for _ in range(numbers.randint(3, 9))]
    stages = numbers.randint(1, len(costs))
    bounds = cut_stages(costs, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert all(a < b for a, b in itertools.pairwise(bounds)), "no stage is empty"
    best = min(
        largest(costs, [0, *inner, len(costs)]) for inner in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    assert largest(costs, bounds) == pytest.approx(best, rel=1e-6)


def test_a_heavy_head_leaves_its_stage_fewer_layers() -> None:
    light = ModelConfig(vocab_size=100, hidden_size=64, layers=12, heads=4)
    heavy = ModelConfig(vocab_size=12 * 64 * 60, hidden_size=64, layers=12, heads=4)
    parallel = ParallelConfig(pipeline=4)
    layers_of_last = [block_count(m) - stage_bounds(m, parallel, 64)[-2] - 2 for m in (light, heavy)]
    assert layers_of_last[0] == 3
    assert layers_of_last[1] < 3


def test_costs_have_one_number_a_block() -> None:
    for position in ("pre", "post"):
        model = ModelConfig(vocab_size=8, hidden_size=16, layers=2, heads=2, norm_position=position)
        costs = block_costs(model, 8)
        assert len(costs) == block_count(model)
        names = [build_block(model, PlainLayers(), index).name for index in range(block_count(model))]
        assert names[:2] == ["embedding", "positions"]
        assert names[-1] == "head"
        assert ("final_norm" in names) == (position == "pre")
        assert costs[names.index("layers.0")] == costs[names.index("layers.1")] > costs[1]
