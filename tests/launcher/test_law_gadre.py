"""Gadre et al. 2024 refitted from five small runs a corpus: their table, and their errors on runs of 300 times the compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.cli import main

DATA = Path(__file__).parent / "gadre_overtraining" / "models_losses.csv"
FIVE = "params<1e9, multiplier=1 | params<2e7, multiplier=16"  # scaling/shared.py:fit_ds of mlfoundations/scaling


def fitted(capsys: pytest.CaptureFixture[str], corpus: str, *more: str) -> dict:
    line = ["fit", "gadre", str(DATA), "--loss", "loss:c4_val", "--where", f"dataset={corpus}", "--fit-where", FIVE]
    assert main([*line, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("corpus", "published"),
    [
        ("c4_original", ("1.51", "141", "190", "0.121")),
        ("rpj", ("1.84", "212", "367", "0.136")),
        ("rw_original", ("1.73", "157", "246", "0.127")),
    ],
)
def test_coefficients_are_the_published_ones_to_the_printed_digits(capsys, corpus, published):
    found = fitted(capsys, corpus)
    value = found["coefficients"]
    assert found["rows"] == 5
    assert (f"{value['E']:.2f}", f"{value['a']:.0f}", f"{value['b']:.0f}", f"{value['eta']:.3f}") == published


def test_extrapolation_errors_are_the_published_ones(capsys):
    found = fitted(capsys, "rpj")
    errors = {run["name"]: f"{100 * run['error']:.4f}" for run in found["held_out"]["runs"]}
    assert errors["rpj-open_lm_1b-32.0"] == "0.7103"
    assert errors["rpj-open_lm_7b-1.0"] == "0.7320"


def test_five_rows_give_no_intervals_and_say_so(capsys):
    found = fitted(capsys, "rpj", "--budget", "1e23")
    assert found["intervals"] is None
    assert any("too few to resample" in text for text in found["warnings"])
    assert any("extrapolation" in text for text in found["warnings"])
    best = found["optimum"][0]
    assert 6 * best["params"] * best["tokens"] == pytest.approx(1e23)
    assert best["decades_beyond_data"] == pytest.approx(3.69, abs=0.01)  # the largest of the five has 2.03e19 FLOPs


def test_several_losses_are_not_guessed_among(capsys):
    assert main(["fit", "gadre", str(DATA)]) == 1
    assert "--loss NAME" in capsys.readouterr().err.replace("\n", " ")
