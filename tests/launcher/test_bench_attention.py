"""The bench of attention with document masks: every figure is there; nothing here asserts a speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.bench.attention import main
from launcher.config import RecipeError


def test_every_length_is_measured_in_all_three_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--lengths", "64,128", "--documents", "16,100", "--rounds", "2"]
    assert main([*sizes, "--json", str(file), "model.hidden_size=16", "model.heads=2"]) == 0
    figures = json.loads(file.read_text())
    measured = [(one["length"], one["document"]) for one in figures["figures"]]
    assert measured == [(64, 16), (128, 16), (128, 100)]  # documents as long as sequences are no packing
    for one in figures["figures"]:
        assert set(one["seconds"]) == {"dense", "causal", "varlen"} and min(one["seconds"].values()) > 0
        assert 0 < one["low"] <= one["ratio"] <= one["high"]
    told = capsys.readouterr().out
    assert "2 heads" in told and "128 / 100" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--lengths", "a"], "--lengths=a"), (["--documents", "0"], "--documents=0"), (["--rounds", "1"], "--rounds=1")],
)
def test_impossible_sizes_are_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        main(arguments)
