"""Tokens from a budget, batch and rate from a law: the same written out by hand, idempotent, and nothing ignored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.check import check_corpus, with_budget, with_vocabulary
from launcher.compose import build_recipe, compose_tree
from launcher.config import Recipe, RecipeError
from launcher.derive import BATCHES, RATES, PowerLaw, flops_of, inner_parameters, law_of, settle
from launcher.optim.schedule import Schedule
from models.config import count_parameters
from models.flops import flops_per_token

PLAIN = ["tracker=none", "train.sequence_length=256", "train.micro_batch=8"]


def composed(*overrides: str) -> Recipe:
    batch = [] if any("batch_law" in text for text in overrides) else ["train.batch_tokens=4096"]
    return with_vocabulary(build_recipe(compose_tree([*PLAIN, *batch, *overrides])), 1024)


def test_tokens_follow_from_flops_and_from_parameters() -> None:
    recipe = settle(composed("train.flops=1e15"))
    cost = flops_per_token(recipe.model, 256)
    assert recipe.train.tokens % 4096 == 0 and abs(recipe.train.tokens - 1e15 / cost) <= 2048
    assert abs(flops_of(recipe) - 1e15) <= 2048 * cost
    assert flops_of(replace(recipe, train=replace(recipe.train, max_steps=2))) == 2 * 4096 * cost
    assert settle(recipe) == recipe, "a resume finds the same"
    recipe = settle(composed("train.tokens_per_parameter=20"))
    assert abs(recipe.train.tokens - 20 * count_parameters(recipe.model)) <= 2048
    assert settle(composed("train.flops=1")).train.tokens == 4096, "one batch is the least"
    plain = composed("train.tokens=5000")
    assert settle(plain) == plain


def test_laws_by_name_and_written_out() -> None:
    recipe = composed("train.tokens=1e9", "train.batch_law=step_law", "optimizer.rate_law=step_law")
    found, n, d = settle(recipe), inner_parameters(recipe.model), 1e9
    model = recipe.model
    assert n == count_parameters(model) - 1024 * model.hidden_size
    assert inner_parameters(replace(model, tied_embeddings=False)) == n, "a head is a table too"
    assert found.optimizer.learning_rate == pytest.approx(1.79 * n**-0.713 * d**0.307, rel=1e-3)
    assert abs(found.train.batch_tokens - 0.58 * d**0.571) <= 1024 and found.train.batch_tokens % 2048 == 0
    assert found.train.tokens == 10**9 and settle(found) == found, "what was given stays as it was given"
    both = settle(composed("train.tokens_per_parameter=20", "train.batch_law=step_law", "optimizer.rate_law=porian"))
    assert both.train.tokens % both.train.batch_tokens == 0 and settle(both) == both
    assert law_of("x", " 0.5 * N^-0.4*D^1e-1", {}) == PowerLaw(0.5, -0.4, 0.1)
    assert law_of("x", "2*D^.5", {}) == PowerLaw(2, 0, 0.5) and law_of("x", "3e-4", {}) == PowerLaw(3e-4)
    # OLMo's ladder at the size that both of its laws are written around: 160 sequences of 2048, 4.7e-3
    assert RATES["porian"].at(108e6, 1) == pytest.approx(0.0047)
    assert BATCHES["porian"].at(108e6, 1) == pytest.approx(160 * 2048)


def test_epochs_and_a_law_go_together(corpus: Path) -> None:
    given = ["train.epochs=2", "train.batch_law='64*D^0.1'", "train.sequence_length=16", "train.micro_batch=2"]
    recipe = with_budget(check_corpus(build_recipe(compose_tree([f"data.path={corpus}", *given]))))
    assert recipe.train.tokens != 1_000_000
    assert abs(recipe.train.batch_tokens - 64 * recipe.train.tokens**0.1) <= 16


def test_a_share_of_the_schedule_warms_up() -> None:
    share = composed("schedule.warmup_share=0.1", "train.tokens=100_000")
    tokens = composed("schedule.warmup_tokens=10_000", "train.tokens=100_000")
    for at in (1, 5_000, 10_000, 50_000, 100_000):
        assert Schedule(share.schedule, 1.0, 100_000).at(at) == Schedule(tokens.schedule, 1.0, 100_000).at(at)


MISTAKES = [
    (["train.flops=1e12", "train.epochs=1"], ["train.epochs=1 and train.flops=1e+12", "set one of them to 0"]),
    (["train.flops=-1"], ["train.flops=-1", "at least 0"]),
    (["train.flops=1e12", "train.tokens=5"], ["train.tokens=5", "no effect with train.flops", "train.flops=0"]),
    (["train.epochs=2", "train.tokens=5"], ["train.tokens=5", "no effect with train.epochs"]),
    (["optimizer.rate_law=porian", "optimizer.learning_rate=1"], ["no effect with optimizer.rate_law=porian", "=''"]),
    (["optimizer.rate_law=kaplan"], ["optimizer.rate_law=kaplan", "step_law or porian", "0.5*N^-0.4"]),
    (["train.batch_law=porian", "train.ramp_from=256", "train.ramp_tokens=512"], ["train.batch_law=porian", "grow"]),
    (["schedule.warmup_share=1"], ["schedule.warmup_share=1.0", "below 1"]),
    (["schedule.warmup_share=0.1", "schedule.warmup_tokens=5"], ["both say how long"]),
    (["experiment=staged_mixture", "train.flops=1e12"], ["train.flops=1000000000000.0", "no effect with phases"]),
]


@pytest.mark.parametrize(("line", "told"), MISTAKES, ids=lambda value: " ".join(value))
def test_mistakes(line: list[str], told: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        settle(with_vocabulary(build_recipe(compose_tree(line)), 1024))
    assert all(part in str(caught.value) for part in told), caught.value
