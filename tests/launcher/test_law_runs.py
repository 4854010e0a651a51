"""Laws of our own runs: a sweep's table with budgets as labels, what recipes say, curves, and a directory of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launcher.compose import save_recipe
from launcher.config import Recipe
from launcher.laws.chinchilla import REPLICATED, exponents, optimum
from launcher.laws.envelope import fit_envelope
from launcher.laws.form import LawError
from launcher.laws.isoflop import fit_isoflop
from launcher.laws.picture import law_picture
from launcher.laws.result import FitOptions
from launcher.laws.sweeps import fit_of_sweep
from launcher.laws.table import read_table
from launcher.report.theme import DARK, LIGHT
from launcher.sweep.store import Store
from models.config import ModelConfig, count_parameters
from models.flops import flops_per_token


def loss_of(n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray | float:
    return REPLICATED["E"] + REPLICATED["A"] / n ** REPLICATED["alpha"] + REPLICATED["B"] / d ** REPLICATED["beta"]


def enter(store: Store, position: int, labels: dict[str, str], state: str, figures: dict[str, float]) -> None:
    name = f"run{position}"
    store._base.execute(
        "INSERT INTO runs (fingerprint, configuration, overrides, directory, state, figures) VALUES (?, '{}', '[]', ?, ?, ?)",
        (name, f"runs/{name}", state, json.dumps(figures)),
    )
    store._base.execute("INSERT INTO points VALUES (?, ?, ?)", (json.dumps(labels), position, name))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four budgets of five sizes and a run that failed; each with its curve, as long as its budget allows."""
    store, position = Store(tmp_path / "sweep", create=True), 0
    for budget in (1e18, 4e18, 1.6e19, 6.4e19):
        for factor in np.geomspace(0.5, 2, 5):
            n = float(optimum(REPLICATED, budget)["params"] * factor)
            d = budget / (6 * n)
            figures = {"validation_loss": float(loss_of(n, d)), "tokens": d, "parameters": n, "seconds": 1.0}
            enter(store, position, {"budget": f"{budget:g}", "size": f"x{factor:.2f}"}, "done", figures)
            directory = tmp_path / "sweep" / "runs" / f"run{position}"
            directory.mkdir(parents=True)
            seen = np.geomspace(d / 500, d, 40)
            lines = [{"kind": "step", "tokens": float(at), "loss": float(loss_of(n, at))} for at in seen]
            (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            position += 1
    enter(store, position, {"budget": "1e18", "size": "none"}, "failed", {})
    store.close()
    return tmp_path / "sweep"


def test_profiles_of_a_sweep_by_its_budgets(sweep):
    table = read_table(str(sweep))
    assert len(table.rows) == 20
    fit = fit_isoflop(table, {}, FitOptions(bootstraps=10))
    assert [one["runs"] for one in fit.extra["profiles"]] == [5, 5, 5, 5]
    assert fit.coefficients["a"] == pytest.approx(exponents(REPLICATED)["a_opt"], abs=0.01)


def test_a_sweeps_page_gets_the_law_that_its_runs_carry_and_its_picture(sweep, tmp_path):
    fit = fit_of_sweep(sweep, FitOptions(bootstraps=20))
    assert fit is not None and fit.law == "isoflop"
    for theme in (LIGHT, DARK):
        assert law_picture(fit, theme, "svg").lstrip().startswith(b"<?xml")
    store = Store(tmp_path / "other", create=True)
    for position, loss in enumerate((3.0, 2.9)):
        figures = {"validation_loss": loss, "tokens": 1e6, "parameters": 1e6 * (1 + position)}
        enter(store, position, {"size": str(position)}, "done", figures)
    store.close()
    assert fit_of_sweep(tmp_path / "other") is None


def test_the_envelope_of_a_sweeps_curves(sweep):
    fit = fit_envelope(read_table(str(sweep)), {}, FitOptions(bootstraps=0))
    assert fit.rows == 20
    assert fit.coefficients["a"] == pytest.approx(exponents(REPLICATED)["a_opt"], abs=0.15)
    assert any("schedules of several lengths" in text for text in fit.warnings)


def test_a_recipe_tells_of_batch_rate_and_flops(tmp_path):
    model = ModelConfig(name="small", vocab_size=512, hidden_size=64, layers=2, heads=2, tied_embeddings=True)
    recipe = replace(Recipe(), model=model)
    directory = tmp_path / "runs" / "one"
    directory.mkdir(parents=True)
    save_recipe(recipe, directory / "config.yaml")
    figures = {"validation_loss": 3.0, "tokens": 1_000_000, "parameters": count_parameters(model), "outcome": "done"}
    (directory / "summary.json").write_text(json.dumps(figures))
    table = read_table(str(tmp_path / "runs"))
    row = table.rows[0]
    assert table.numbers("parameters_without_embedding")[0] == count_parameters(model) - 512 * 64
    assert table.numbers("flops")[0] == pytest.approx(1e6 * flops_per_token(model, recipe.train.sequence_length))
    assert float(row["batch_tokens"]) == recipe.train.batch_tokens
    assert float(row["learning_rate"]) == recipe.optimizer.learning_rate
    assert row["name"] == "one"


def test_a_sweep_of_which_nothing_is_done_says_so(tmp_path):
    store = Store(tmp_path / "empty", create=True)
    enter(store, 0, {"size": "a"}, "waiting", {})
    store.close()
    with pytest.raises(LawError, match="none of its 1 runs is done"):
        read_table(str(tmp_path / "empty"))
