"""The engine against planted laws and against scipy from many beginnings of its own."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from launcher.cli import main
from launcher.laws.chinchilla import CHINCHILLA, REPLICATED, exponents, optimum
from launcher.laws.engine import Problem, fit_best, resample
from launcher.laws.fit import fit_law
from launcher.laws.gadre import GADRE
from launcher.laws.result import FitOptions
from launcher.laws.table import Table

LADDER = np.array([4e7, 6e7, 1.5e8, 3e8, 5.3e8, 6.8e8, 1e9, 2e9, 3e9, 7e9])
MULTIPLES = np.array([0.5, 1, 2, 5, 10, 20])


def points(noise: float, seed: int, ratios: np.ndarray = MULTIPLES) -> dict[str, np.ndarray]:
    """The ladder's sizes at multiples of 20 tokens a parameter, with normal noise in the logarithm."""
    n, multiple = (x.ravel() for x in np.meshgrid(LADDER, ratios))
    d = 20 * multiple * n
    law = REPLICATED
    loss = law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]
    return {"params": n, "tokens": d, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=n.size))}


def table(columns: dict[str, np.ndarray]) -> Table:
    rows = zip(*columns.values(), strict=True)
    return Table("planted", tuple({k: repr(float(v)) for k, v in zip(columns, row, strict=True)} for row in rows))


def write(path: Path, columns: dict[str, np.ndarray], names: tuple[str, ...], delimiter: str = ",") -> Path:
    lines = [delimiter.join(names)]
    lines += [delimiter.join(repr(float(value)) for value in row) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_planted_coefficients_without_noise_come_back_exactly():
    fit = fit_law(CHINCHILLA, table(points(0.0, 0)), {}, FitOptions(bootstraps=0))
    for name, value in REPLICATED.items():
        assert fit.coefficients[name] == pytest.approx(value, rel=2e-4)
    assert fit.held_out and fit.held_out["max"] < 1e-6


@pytest.mark.parametrize("noise", [0.003, 0.02])
def test_the_objective_is_as_low_as_scipy_gets_from_the_published_grid(noise):
    found = fit_law(CHINCHILLA, table(points(noise, 1)), {}, FitOptions(bootstraps=0))
    columns = points(noise, 1)
    n, d, y = np.log(columns["params"]), np.log(columns["tokens"]), np.log(columns["loss"])

    def objective(p):
        a, b, e, alpha, beta = p
        away = np.abs(logsumexp([a - alpha * n, b - beta * d, np.full_like(n, e)], axis=0) - y)
        return np.where(away <= 1e-3, 0.5 * away**2, 1e-3 * (away - 0.5e-3)).sum()

    grid = list(itertools.product((5, 15), (5, 15), (-0.5, 0.5), (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)))
    lowest = min(minimize(lambda p: 1e6 * objective(p), x, method="L-BFGS-B").fun for x in grid[::8]) / 1e6
    assert found.objective is not None and found.objective <= lowest + 1e-9
    told = [np.log(found.coefficients[k]) for k in ("A", "B", "E")] + [found.coefficients[k] for k in ("alpha", "beta")]
    assert objective(told) == pytest.approx(found.objective, rel=1e-9)


@pytest.mark.parametrize("law", [CHINCHILLA, GADRE], ids=lambda law: law.name)
def test_the_gradient_is_exact(law):
    columns = points(0.0, 0)
    theta = law.inner({one.name: one.starts[-1] for one in law.coefficients})
    _, slopes = law.predict(theta, columns)
    for index in range(len(theta)):
        step = np.zeros_like(theta)
        step[index] = 1e-6
        numeric = (law.predict(theta + step, columns)[0] - law.predict(theta - step, columns)[0]) / 2e-6
        np.testing.assert_allclose(slopes[:, index], numeric, rtol=1e-6, atol=1e-7)


def test_the_optimum_is_where_no_other_split_is_better():
    best = optimum(REPLICATED, 1e22)
    assert 6 * best["params"] * best["tokens"] == pytest.approx(1e22)
    for factor in (0.9, 1.1):
        n = best["params"] * factor
        d = 1e22 / (6 * n)
        loss = REPLICATED["E"] + REPLICATED["A"] / n ** REPLICATED["alpha"] + REPLICATED["B"] / d ** REPLICATED["beta"]
        assert loss > best["loss"]
    more = optimum(REPLICATED, 1e24)
    assert np.log(more["params"] / best["params"]) / np.log(100) == pytest.approx(exponents(REPLICATED)["a_opt"])


def test_columns_as_epoch_calls_them_and_rows_that_lack_a_value(tmp_path, capsys):
    columns = points(0.0, 0)
    columns = {"size": columns["params"], "flop": 6 * columns["params"] * columns["tokens"], "loss": columns["loss"]}
    path = write(tmp_path / "points.csv", columns, ("Model Size", "Training FLOP", "loss"), ";")
    path.write_text(path.read_text() + "1e9;;3.1\n1e9;nan;9.9\n")
    assert main(["fit", "chinchilla", str(path), "--json", "--drop-top-losses", "5", "--bootstraps", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == len(columns["loss"]) - 5
    assert found["coefficients"]["B"] == pytest.approx(REPLICATED["B"], rel=1e-3)
    assert any("2 of 62 rows lack a value" in text for text in found["notes"])
    assert found["columns"] == {
        "params": "Model Size",
        "flops": "Training FLOP",
        "loss": "loss",
        "tokens": "Training FLOP / (6 x Model Size)",
    }


def test_runs_whose_tokens_follow_their_size_are_warned_of():
    fit = fit_law(CHINCHILLA, table(points(0.001, 0, np.array([1.0]))), {}, FitOptions(bootstraps=0, hold_out=0))
    assert any("go together" in text for text in fit.warnings)


def test_a_held_coefficient_stays(capsys):
    fit = fit_law(CHINCHILLA, table(points(0.003, 0)), {}, FitOptions(bootstraps=30, fix=("E=1.8172",)))
    assert fit.coefficients["E"] == pytest.approx(1.8172)
    assert fit.intervals and fit.intervals["E"] == pytest.approx((1.8172, 1.8172))
    assert fit.intervals["alpha"][0] < REPLICATED["alpha"] < fit.intervals["alpha"][1]


def test_resamples_end_where_a_fit_of_their_own_rows_does():
    columns, count = points(0.005, 2), 4
    logs = np.log(columns["loss"])
    problem = Problem(CHINCHILLA, columns, logs, {})
    theta, _ = fit_best(problem)
    found = resample(problem, theta, count, seed=7)
    drawn = np.random.default_rng(7).multinomial(len(logs), np.full(len(logs), 1 / len(logs)), size=count)
    for replica, times in zip(found, drawn, strict=True):
        rows = np.repeat(np.arange(len(logs)), times)
        own = Problem(CHINCHILLA, {name: values[rows] for name, values in columns.items()}, logs[rows], {})
        _, lowest = fit_best(own)
        assert own.objective(replica) <= lowest * (1 + 1e-4)


@pytest.mark.slow
def test_intervals_cover_the_planted_law_as_often_as_they_say():
    """80 data sets; each interval of 90 % holds the truth in 90 % of them, within three standard errors of such a count."""
    sets, level = 80, 0.9
    held = dict.fromkeys((*REPLICATED, "a_opt", "N"), 0)
    truth = {**REPLICATED, **exponents(REPLICATED), "N": optimum(REPLICATED, 1e22)["params"]}
    for seed in range(sets):
        options = FitOptions(bootstraps=200, level=level, hold_out=0, budget=(1e22,), seed=seed)
        fit = fit_law(CHINCHILLA, table(points(0.005, 100 + seed)), {}, options)
        assert fit.intervals is not None
        spans = {**fit.intervals, "N": fit.optima[0]["intervals"]["params"]}
        for name in held:
            held[name] += spans[name][0] <= truth[name] <= spans[name][1]
    slack = 3 * (level * (1 - level) / sets) ** 0.5
    assert all(abs(count / sets - level) <= slack for count in held.values()), held
