"""`triaxis plan budget=…`: the split, the shape, and that the recipe is one that `triaxis train` takes."""

from __future__ import annotations

import json

import pytest

from launcher.cli import main
from launcher.compose import build_recipe, compose_tree
from launcher.laws.chinchilla import PUBLISHED, REPLICATED, optimum
from launcher.laws.recipe import plan_for
from launcher.laws.shape import NARROWEST, WIDEST, shape_of
from launcher.laws.step import PUBLISHED as STEP
from launcher.laws.step import rate_and_batch
from models.config import count_parameters


@pytest.mark.parametrize("budget", [1e15, 1e18, 1e21, 1e24])
def test_the_budget_is_spent_on_the_best_split(budget):
    plan, best = plan_for(budget), optimum(REPLICATED, budget)
    assert 6 * plan.shape.parameters * plan.tokens == pytest.approx(budget, rel=0.02)
    assert plan.shape.parameters == pytest.approx(best["params"], rel=0.1)
    assert plan.loss == pytest.approx(best["loss"], rel=1e-3)
    assert plan.tokens % plan.batch_tokens == 0 and plan.batch_tokens % plan.sequence_length == 0
    rate, batch = rate_and_batch(STEP, plan.shape.without_embedding, plan.tokens)
    assert plan.learning_rate == pytest.approx(rate, rel=0.01)
    assert plan.batch_tokens == pytest.approx(batch, rel=0.2)


@pytest.mark.parametrize("size", [1e7, 1e8, 1e9, 1e10, 7e10, 4e11])
def test_shapes_are_near_and_as_wide_as_published_models(size):
    shape = shape_of(size)
    model = shape.model
    assert shape.parameters == count_parameters(model) == pytest.approx(size, rel=0.05)
    assert NARROWEST <= model.hidden_size / model.layers <= WIDEST or model.layers == 2
    assert model.hidden_size % model.heads == 0 and model.hidden_size // model.heads in (32, 64, 128)


def test_the_file_is_a_recipe_of_triaxis_train(tmp_path, capsys):
    assert main(["plan", "budget=1e19", "name=mine", f"out={tmp_path}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    recipe = build_recipe(compose_tree(["experiment=mine"], str(tmp_path)))
    assert count_parameters(recipe.model) == told["params"]
    assert recipe.train.tokens == told["tokens"]
    assert recipe.optimizer.learning_rate == told["learning_rate"]
    assert recipe.schedule.final_ratio * told["learning_rate"] == pytest.approx(1e-5, rel=0.01)
    words = build_recipe(compose_tree(told["overrides"]))
    assert (words.model, words.train, words.schedule) == (recipe.model, recipe.train, recipe.schedule)


def test_a_fit_of_ours_and_the_printed_coefficients(tmp_path, capsys):
    path = tmp_path / "fit.json"
    path.write_text(json.dumps({"law": "chinchilla", "coefficients": PUBLISHED, "warnings": ["a warning of the fit"]}))
    assert plan_for(1e21, str(path)).shape == plan_for(1e21, "hoffmann").shape
    assert any("a warning of the fit" in text for text in plan_for(1e21, str(path)).warnings)
    powers = {"k_N": 0.1, "a": 0.5, "k_D": 1 / 0.6, "b": 0.5, "E": 1.0, "k_L": 5.0, "c": 0.05}
    path.write_text(json.dumps({"law": "isoflop", "coefficients": powers}))
    assert plan_for(1e20, str(path)).shape.parameters == pytest.approx(1e9, rel=0.05)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["budget=much"], "must be FLOPs"),
        (["budget=1e21", "lwa=hoffmann"], "did you mean law=?"),
        (["budget=1e21", "law=nothing.json"], "no such file"),
        (["budget=1e21", "name=a/b"], "plain name"),
    ],
)
def test_what_cannot_be_is_refused(words, told, capsys):
    assert main(["plan", *words]) == 1
    assert told in capsys.readouterr().err
