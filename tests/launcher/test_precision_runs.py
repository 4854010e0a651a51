"""Every preset of `precision=` trains from end to end, at every layout alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.check import check_recipe
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from models.errors import ModelError
from parallel.config import ParallelError
from tests.launcher.running import Triaxis, curve, minute

STEPS = 4
PRESETS = ("fp32", "bf16", "fp8", "mxfp8", "mxfp6", "mxfp4_mxfp6", "mxint8", "mxfp4_backward", "nvfp4")
KNOWN: list[float] = []
"""Losses in float32, once they were asked for."""
AXES = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2")


def trained(triaxis: Triaxis, corpus: Path, name: str, *options: str) -> list[float]:
    """Losses of the first steps."""
    sizes = {
        "train__sequence_length": 64,
        "train__batch_tokens": 512,
        "data__span_tokens": 64,
        "train__tokens": STEPS * 512,
        "train__micro_batch": 1,
        "train__validation_tokens": 512,
        "model__max_sequence": 64,
        "model__layers": 4,
        "model__hidden_size": 128,
        "model__heads": 2,
        "model__ffn_size": 128,
        "model__vocab_multiple": 4,
        "run__name": name,
    }
    triaxis.run("train", *minute(corpus, STEPS, *options, **sizes))
    return [line[3] for line in curve(triaxis.directory / "runs" / name)]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("fp32", "bf16")])
def test_presets_train_beside_float32(preset: str, triaxis: Triaxis, corpus: Path) -> None:
    found = trained(triaxis, corpus, preset, f"precision={preset}")
    if not KNOWN:
        KNOWN.extend(trained(triaxis, corpus, "plain", "precision=fp32"))
    plain = KNOWN
    assert len(found) == STEPS
    assert found != plain, "nothing was quantised"
    assert found == pytest.approx(plain, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["deepspeed", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_on_three_axes(preset: str, engine: str, triaxis: Triaxis, corpus: Path) -> None:
    """The same numbers enter the first products; later ones round a sum's last bit otherwise here and there."""
    options = [f"precision={preset}", f"parallel.engine={engine}"]
    options += ["parallel.schedule=gpipe"] * (engine == "torch")
    found = trained(triaxis, corpus, "axes", *options, *AXES)
    assert found == pytest.approx(trained(triaxis, corpus, "one", f"precision={preset}"), rel=2e-3)


def test_a_preset_on_three_axes(triaxis: Triaxis, corpus: Path) -> None:
    found = trained(triaxis, corpus, "axes", "precision=mxfp6", *AXES, "parallel.sequence_parallel=true")
    assert found == pytest.approx(trained(triaxis, corpus, "one", "precision=mxfp6"), rel=2e-3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["precision=mxfp6", "precision.products.forward.weight=mxfp5"], ["forward.weight=mxfp5", "mxfp6_e2m3"]),
        (["precision=mxfp8", "precision.name=fp16"], ["precision.name=fp16", "bf16"]),
        (["precision.products.high_last=1"], ["high_last=1", "no effect"]),
        (["precision=mxfp9"], ["mxfp9"]),
    ],
)
def test_bad_choices_are_refused_by_name(overrides: list[str], words: list[str]) -> None:
    with pytest.raises((ModelError, ParallelError, RecipeError)) as told:
        build_recipe(compose_tree(overrides))
    for word in words:
        assert word in str(told.value)


def test_a_fused_head_is_not_quantised_in_silence() -> None:
    recipe = build_recipe(compose_tree(["precision=mxfp8", "loss.fused=true", "precision.products.high=[router]"]))
    recipe = replace(recipe, model=replace(recipe.model, vocab_size=1024))
    with pytest.raises(RecipeError, match="loss.fused=true: .* add head to it"):
        check_recipe(recipe, 1, "cpu")
