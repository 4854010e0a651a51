"""Chinchilla's first two approaches on planted laws, and the second one's known bias."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launcher.cli import main
from launcher.laws.chinchilla import REPLICATED, exponents, optimum
from launcher.laws.envelope import fit_envelope
from launcher.laws.form import LawError
from launcher.laws.isoflop import fit_isoflop
from launcher.laws.result import FitOptions
from launcher.laws.table import Table

BUDGETS = np.array([1e19, 3e19, 1e20, 3e20, 1e21])


def loss_of(n: np.ndarray, d: np.ndarray, law: dict[str, float] = REPLICATED) -> np.ndarray:
    return law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]


def table(**columns: np.ndarray) -> Table:
    rows = zip(*columns.values(), strict=True)
    return Table("planted", tuple({k: str(v) for k, v in zip(columns, row, strict=True)} for row in rows))


def profiles(
    span: float, sizes: int, noise: float = 0.0, law: dict[str, float] = REPLICATED, off: float = 1.0
) -> Table:
    """Each budget's best size times factors from 1/span to span; off: moves them all."""
    factors = np.geomspace(1 / span, span, sizes) * off
    n = np.concatenate([optimum(law, budget)["params"] * factors for budget in BUDGETS])
    c = np.repeat(BUDGETS, sizes)
    d = c / (6 * n)
    noisy = loss_of(n, d, law) * np.exp(noise * np.random.default_rng(5).normal(size=n.size))
    return table(params=n, tokens=d, loss=noisy)


def test_narrow_profiles_give_the_planted_exponent_and_no_warning_of_bias():
    fit = fit_isoflop(profiles(1.5, 7), {}, FitOptions(bootstraps=20, budget=(1e21,)))
    assert fit.coefficients["a"] == pytest.approx(exponents(REPLICATED)["a_opt"], abs=2e-3)
    assert fit.optima[0]["params"] == pytest.approx(optimum(REPLICATED, 1e21)["params"], rel=0.01)
    assert fit.coefficients["a"] + fit.coefficients["b"] == pytest.approx(1)
    assert not any("shift the optimum" in text for text in fit.warnings)
    assert fit.held_out and fit.held_out["params"] == pytest.approx(fit.held_out["params_found"], rel=0.01)


def test_the_bias_of_wide_and_lopsided_grids_is_told_and_is_what_it_does():
    law = {**REPLICATED, "alpha": 0.5, "beta": 0.25, "A": 9000.0, "B": 300.0}
    fit = fit_isoflop(profiles(16, 7, law=law), {}, FitOptions(bootstraps=0))
    assert any("shift the optimum even without noise" in text for text in fit.warnings)
    bias = fit.extra["grid_bias"]
    at = fit.extra["profiles"][-1]
    away = at["params"] / optimum(law, at["budget"])["params"] - 1
    assert abs(away) > 0.1
    assert bias["params_shift"] == pytest.approx(away, rel=0.05)


def test_planted_profiles_with_noise_lie_in_the_interval():
    fit = fit_isoflop(profiles(3, 9, noise=0.002), {}, FitOptions(bootstraps=200, level=0.99))
    assert fit.intervals is not None
    low, high = fit.intervals["a"]
    assert low < exponents(REPLICATED)["a_opt"] < high and high - low < 0.2


def test_budgets_without_a_lowest_loss_are_left_out_or_refused():
    with pytest.raises(LawError, match="fit chinchilla"):
        fit_isoflop(profiles(2, 5, off=40.0), {}, FitOptions(bootstraps=0))
    n = np.geomspace(1e8, 1e9, 30)
    with pytest.raises(LawError, match="comes in no budgets"):
        fit_isoflop(table(params=n, tokens=20 * n**0.9, loss=loss_of(n, 20 * n)), {}, FitOptions())


def test_a_column_of_budgets_groups_runs_whose_flops_differ():
    rows = profiles(1.5, 5)
    n, d = rows.numbers("params"), rows.numbers("tokens")
    own = table(params=n, tokens=d, flops=6 * n * d * (1 + 0.3 * 1e8 / n), budget=6 * n * d, loss=rows.numbers("loss"))
    fit = fit_isoflop(own, {}, FitOptions(bootstraps=0))
    assert len(fit.extra["profiles"]) == len(BUDGETS)
    assert any("N D in these runs" in text for text in fit.notes)


def test_the_envelope_of_planted_curves_gives_the_planted_exponent():
    n = np.repeat(np.geomspace(2e7, 2e9, 12), 60)
    d = np.tile(np.geomspace(1e8, 4e11, 60), 12)
    fit = fit_envelope(table(params=n, tokens=d, loss=loss_of(n, d)), {}, FitOptions(bootstraps=8, budget=(1e20,)))
    assert fit.rows == 12
    assert fit.coefficients["a"] == pytest.approx(exponents(REPLICATED)["a_opt"], abs=0.03)
    assert fit.optima[0]["params"] == pytest.approx(optimum(REPLICATED, 1e20)["params"], rel=0.25)


def test_profiles_by_command_with_a_picture(tmp_path, capsys):
    rows = profiles(2, 5, noise=0.001)
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps({k: float(v) for k, v in row.items()}) + "\n" for row in rows.rows))
    line = [
        "fit",
        "isoflop",
        str(path),
        "--budget",
        "1e22",
        "--bootstraps",
        "50",
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    assert main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "out" / "fit.json").read_text())
    assert found["optimum"][0]["decades_beyond_data"] == pytest.approx(1.0, abs=0.01)
    for theme in ("light", "dark"):
        assert (tmp_path / "out" / f"isoflop_{theme}.png").read_bytes().startswith(b"\x89PNG")
