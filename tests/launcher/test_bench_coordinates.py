"""The coordinate check: what activations learn is as large at every width and depth, and not so without a parametrization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.bench.coordinates import PARTS, main, run, sized, slope
from launcher.config import OptimizerConfig, Recipe, RecipeError
from models.config import ModelConfig
from models.moe.config import MoEConfig

MODEL = ModelConfig(vocab_size=256, hidden_size=64, layers=2, heads=4, ffn_size=128, max_sequence=64)
WIDTHS, DEPTHS = [64, 128, 256, 512], [2, 4, 8, 16]
SPARSE = replace(MODEL, kv_heads=2, moe=MoEConfig(experts=4, expert_size=64, shared_experts=1, shared_gate=True))


def slopes(model: ModelConfig, sizes: list[int], along: str, rate: float = 3e-3, name: str = "adamw") -> dict:
    optimizer = OptimizerConfig(name=name) if name == "adamw" else OptimizerConfig(name=name, beta1=0.0)
    recipe = Recipe(model=model, optimizer=optimizer)
    return run(recipe, sizes, along, steps=3, rate=rate, seeds=1)["slopes"]


def test_mup_is_flat_over_width_and_standard_is_not() -> None:
    found = slopes(MODEL, WIDTHS, "width")
    for part in PARTS:
        assert abs(found["mup"][part]) < 0.25, part
        assert found["standard"][part] > 0.6, part


def test_a_mixture_is_flat_over_width_too() -> None:
    found = slopes(SPARSE, WIDTHS[:3], "width")
    assert all(abs(found["mup"][part]) < 0.3 for part in PARTS)
    assert all(found["standard"][part] > 0.6 for part in PARTS)


def test_completep_is_flat_over_depth_and_standard_is_not() -> None:
    found = slopes(MODEL, DEPTHS, "depth")
    assert all(abs(found["completep"][part]) < 0.3 for part in PARTS)
    assert found["standard"]["residual stream"] > 0.5


def test_sgd_follows_width_by_its_own_rule() -> None:
    found = slopes(MODEL, WIDTHS[:3], "width", rate=1.0, name="sgd")
    assert max(abs(found["mup"][part]) for part in PARTS) < 0.25
    assert max(abs(found["standard"][part]) for part in PARTS) > 0.6


def test_sizes_keep_proportions() -> None:
    found = sized(SPARSE, 256, 6)
    assert (found.hidden_size, found.layers, found.heads, found.kv_heads, found.head_width) == (256, 6, 16, 8, 16)
    assert (found.ffn_width, found.expert_width) == (512, 256)
    with pytest.raises(RecipeError, match=r"--widths=72: heads of model\.head_size=16"):
        sized(MODEL, 72, 2)


def test_a_slope_is_the_exponent() -> None:
    assert slope({64: 2.0, 128: 4.0, 256: 8.0}) == pytest.approx(1.0)


def test_command_prints_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["model.hidden_size=32", "model.heads=2", "model.layers=2", "model.ffn_size=64", "model.vocab_size=64"]
    place = tmp_path / "coordinates.png"
    assert main([*small, "--widths", "32,64", "--steps", "1", "--seeds", "1", "--png", str(place)]) == 0
    assert "mup, by width" in capsys.readouterr().out
    assert place.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RecipeError, match="--depths=2: must be at least two"):
        main([*small, "--depths", "2"])
