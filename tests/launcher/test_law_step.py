"""Learning rate and batch: a planted grid under the released file's columns, the penalty, and a table of resampled fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launcher.cli import main
from launcher.laws.power import fit_power
from launcher.laws.result import FitOptions
from launcher.laws.step import PUBLISHED, Group, fit_step, rate_and_batch
from launcher.laws.table import Table

PAIRS = [(n, d) for n in (6e7, 2.1e8, 4.3e8, 1.07e9) for d in (4e9, 1e10, 2e10, 5e10)]


def grid(path: Path, *, steps: bool) -> Path:
    """Losses of a bowl around the published optimum, on a grid of powers of the square root of two and of two."""
    lines = ["N,D,h,ffnh,lr,bs," + ("ti," if steps else "") + "loss,smooth loss"]
    for n, d in PAIRS:
        rate, batch = rate_and_batch(PUBLISHED, n, d)
        for lr in 2.0 ** np.arange(-12, -5, 0.5):
            for sequences in (32, 64, 128, 256, 512, 1024):
                away = 0.004 * np.log2(lr / rate) ** 2 + 0.003 * np.log2(2048 * sequences / batch) ** 2
                loss = 2 + 300 / n**0.35 + away
                cells = [n, d, 1024, 2728, lr, sequences, *([d / 2048 / sequences] if steps else []), 9.9, loss]
                lines.append(",".join(repr(float(cell)) for cell in cells))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("steps", [True, False])
def test_a_planted_grid_under_the_released_columns(tmp_path, capsys, steps):
    path = grid(tmp_path / "grid.csv", steps=steps)
    assert main(["fit", "step", str(path), "--json", "--bootstraps", "50", "--budget", "1e20"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["columns"]["loss"] == "smooth loss"
    assert any("sequences of 2048 tokens" in text for text in found["notes"])
    assert found["penalty"]["groups"] == len(PAIRS)
    assert found["penalty_of_the_published_law"]["max"] < 0.0005
    assert found["coefficients"]["gamma"] == pytest.approx(PUBLISHED["gamma"], abs=0.1)
    assert found["coefficients"]["alpha"] == pytest.approx(PUBLISHED["alpha"], abs=0.1)
    assert {"learning_rate", "batch", "params", "tokens"} <= set(found["optimum"][0])


def test_the_penalty_is_that_of_the_nearest_run():
    group = Group(1e9, 1e10, np.array([1e-3, 2e-3, 1e-3]), np.array([1e5, 1e5, 4e5]), np.array([2.0, 2.1, 2.2]))
    law = {"c": 1.8e-3, "alpha": 0.0, "beta": 0.0, "d": 1.2e5, "gamma": 0.0}
    assert group.penalty(law) == pytest.approx(0.05)


def test_a_table_of_resampled_fits_gives_their_mean():
    rows = [{"lr_intercept": str(np.log(1.7) + k / 100), "lr_coefN": str(-0.7 - k / 1000), "lr_coefD": "0.3",
             "bs_intercept": str(np.log(0.5)), "bs_coefD": "0.57"} for k in range(-10, 11)]  # fmt: skip
    fit = fit_step(Table("resamples", tuple(rows)), {}, FitOptions())
    assert fit.coefficients == pytest.approx({"c": 1.7, "alpha": -0.7, "beta": 0.3, "d": 0.5, "gamma": 0.57})
    assert fit.intervals and fit.intervals["alpha"][0] < -0.7 < fit.intervals["alpha"][1]


def test_the_power_schedules_exponents_are_found_again():
    random = np.random.default_rng(0)
    rows = []
    for tokens in np.geomspace(1e9, 1e11, 6):
        for batch in (32, 128, 512):
            best = batch * 4.6 * tokens**-0.51
            for factor in 2.0 ** np.arange(-2, 3):
                loss = 2.5 + 0.01 * np.log2(factor) ** 2
                rate = float(best * factor * np.exp(0.01 * random.normal()))
                rows.append(
                    {"tokens": repr(float(tokens)), "batch": str(batch), "lr": repr(rate), "loss": repr(float(loss))}
                )
    fit = fit_power(Table("planted", tuple(rows)), {}, FitOptions(bootstraps=50))
    assert fit.coefficients["b"] == pytest.approx(-0.51, abs=0.01)
    assert fit.coefficients["a"] == pytest.approx(4.6, rel=0.2)
    assert not fit.warnings
