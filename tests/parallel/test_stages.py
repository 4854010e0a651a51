"""Where a pipeline is cut: the best cut there is, against every cut there is."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch

from models.blocks import block_costs, block_count
from models.config import ModelConfig
from models.decoder import Decoder, build_block
from models.layers import PlainLayers
from parallel.stages import cut_stages, stage_bounds


def largest(costs: list[float], bounds: list[int]) -> float:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("seed", range(60))
def test_no_cut_has_a_faster_slowest_stage(seed: int) -> None:
    numbers = random.Random(seed)
    costs = [numbers.choice([0.01, 1.0, 1.0, numbers.uniform(0, 5)]) for _ in range(numbers.randint(1, 10))]
    stages = numbers.randint(1, len(costs))
    bounds = cut_stages(costs, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert all(a < b for a, b in itertools.pairwise(bounds)), "no stage is empty"
    best = min(
        largest(costs, [0, *inner, len(costs)]) for inner in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    assert largest(costs, bounds) == pytest.approx(best, rel=1e-6)


MODEL = ModelConfig(
    vocab_size=1000, hidden_size=64, layers=12, heads=4, kv_heads=2, ffn_size=128, tied_embeddings=False
)


def layers_of_stages(model: ModelConfig, stages: int) -> list[int]:
    bounds = stage_bounds(model, stages, 128)
    assert len(bounds) == stages + 1
    assert (bounds[0], bounds[-1]) == (0, block_count(model))
    in_stage = [range(start, stop) for start, stop in itertools.pairwise(bounds)]
    return [sum(2 <= block < model.layers + 2 for block in blocks) for blocks in in_stage]


def test_a_heavy_head_leaves_its_stage_fewer_layers() -> None:
    assert layers_of_stages(replace(MODEL, vocab_size=16), 4) == [3, 3, 3, 3]
    found = layers_of_stages(replace(MODEL, vocab_size=1200), 4)
    assert 0 < found[-1] < 3 <= min(found[:-1])
    assert layers_of_stages(replace(MODEL, vocab_size=100_000), 4)[-1] == 0, "it stands alone with its norm"


def test_giants_are_cut_evenly() -> None:
    """MT-NLG 530B in its 35 stages: 3 layers each."""
    giant = ModelConfig(vocab_size=51200, hidden_size=20480, layers=105, heads=128, activation="gelu")
    assert layers_of_stages(giant, 35) == [3] * 35


@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("vocabulary", [16, 5000, 1_000_000])
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
def test_every_stage_holds_parameters_that_decay_and_that_do_not(layers: int, vocabulary: int, position: str) -> None:
    """Else the stages would have other groups in their optimizers, and DeepSpeed would hang."""
    model = replace(MODEL, layers=layers, vocab_size=vocabulary, norm_position=position)
    for stages in range(1, layers + 1):
        for start, stop in itertools.pairwise(stage_bounds(model, stages, 128)):
            with torch.device("meta"):
                stage = Decoder(model, PlainLayers(), start, stop)
            assert {parameter.dim() for parameter in stage.parameters()} == {1, 2}, (stages, start, stop)


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
