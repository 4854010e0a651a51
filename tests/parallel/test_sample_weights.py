"""Weights of samples by their losses against the rule written out; that layouts agree is test_parity's."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.errors import ModelError
from models.linear import cross_entropy
from models.objectives.config import ReweightConfig
from parallel.config import ParallelConfig
from parallel.engines.loss import WeightedLoss, sample_weights

RULES = [
    ReweightConfig("linupper"),
    ReweightConfig("linupper", 0.3, cap=0.5),
    ReweightConfig("quadratic", 2.0),
    ReweightConfig("extremes", 0.7),
]


def written_out(config: ReweightConfig, losses: list[float]) -> list[float]:
    lowest, highest = min(losses), max(losses)
    scores = []
    for loss in losses:
        place = 2 * (loss - lowest) / (highest - lowest) - 1
        score = {"linupper": min(place, config.cap), "quadratic": 1 - place**2, "extremes": place**2}[config.name]
        scores.append(math.exp(score / config.temperature))
    return [len(losses) * score / sum(scores) for score in scores]


@pytest.mark.parametrize("config", RULES, ids=str)
def test_weights_are_the_rule_written_out(config: ReweightConfig) -> None:
    losses = [2.0, 3.5, 9.0, 2.5, 4.0]
    found = sample_weights(config, torch.tensor(losses), torch.ones(5, dtype=torch.bool))
    assert found.tolist() == pytest.approx(written_out(config, losses), rel=1e-5)
    there = torch.tensor([True, True, False, True, True])  # a row that asks for nothing is not looked at
    found = sample_weights(config, torch.tensor(losses), there)
    assert found[there].tolist() == pytest.approx(written_out(config, [losses[at] for at in (0, 1, 3, 4)]), rel=1e-5)
    assert found[2] == 0


def test_equal_losses_and_rows_without_targets_give_plain_weights() -> None:
    config = ReweightConfig("linupper")
    assert sample_weights(config, torch.full((3,), 2.0), torch.ones(3, dtype=torch.bool)).tolist() == [1, 1, 1]
    assert sample_weights(config, torch.zeros(3), torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_a_micro_batchs_sum_is_weighted_in_training_alone() -> None:
    single: Any = SimpleNamespace(config=ParallelConfig())  # all of a mesh that is asked where nothing is cut
    losses = torch.tensor([[1.0, 4.0], [3.0, 8.0]]).requires_grad_()
    weights = torch.tensor([[1.0, 0.5], [1.0, 0.0]])
    config = ReweightConfig("linupper", cap=1.0)
    summed = WeightedLoss(cross_entropy, config, single)
    one, other = written_out(config, [2.0, 4.0])  # mean losses of the two sequences
    found = summed.sum(losses, weights, training=True)
    assert float(found) == pytest.approx(one * 4.0 + other * 2.0)
    (gradient,) = torch.autograd.grad(found, losses)  # none of it through the weights
    assert gradient.tolist() == [pytest.approx([one, other * 0.5]), pytest.approx([one, 0.0])]
    assert float(summed.sum(losses, weights, training=False)) == 6.0
    assert float(WeightedLoss(cross_entropy, ReweightConfig(), single).sum(losses, weights, training=True)) == 6.0


@pytest.mark.parametrize(
    "options",
    [
        {"name": "upper"},
        {"temperature": 2.0},
        {"name": "linupper", "temperature": 0.0},
        {"name": "linupper", "cap": -1.0},
        {"name": "extremes", "cap": 0.5},
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options: dict) -> None:
    with pytest.raises(ModelError, match=r"objective\.reweight\."):
        ReweightConfig(**options)
