"""Runs converted into runs: what becomes of weights and optimizer state, what can be trained on, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from launcher.config import RecipeError
from launcher.convert import convert_command
from launcher.generate import load_model
from launcher.saving import Checkpoints
from launcher.surgery import open_run
from models.config import ModelError
from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.manifest import read_manifest
from parallel.checkpoint.store import Store, resolve
from tests.launcher.conftest import straight_recipe
from tests.launcher.running import Triaxis, curve, minute, records
from tests.models.test_oracle_transformers import DIALECTS
from tests.models.transformers_models import transformers_model

TOKENS = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(place: Path, tokens: Tensor = TOKENS) -> Tensor:
    return load_model(place)[0].model(tokens)


def convert(*arguments: object) -> None:
    assert convert_command([str(argument) for argument in arguments]) == 0


def names_of(place: Path) -> list[str]:
    return list(read_manifest(resolve(place)).tensors)


def test_layers(straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(straight, tmp_path / "half", "--first-layers", 1)
    assert "first 1 layers" in capsys.readouterr().out
    half, recipe = load_model(tmp_path / "half")
    whole, _ = load_model(straight)
    with torch.no_grad():
        x = TOKENS
        for block in (*whole.model.blocks[:3], whole.model.blocks[-2]):
            x = block(x)
        expected = whole.model.blocks[-1](x, whole.model.blocks[0].token.weight)
        assert torch.equal(half.model(TOKENS), expected)
    assert recipe.model.layers == 1
    assert not [name for name in names_of(tmp_path / "half") if name.startswith("optimizer.")]

    convert(straight, tmp_path / "deep", "--depth=0-1,0,1-1", "--identity")
    assert load_model(tmp_path / "deep")[1].model.layers == 4
    assert torch.equal(logits(tmp_path / "deep"), logits(straight))
    convert(tmp_path / "deep", tmp_path / "back", "--first-layers=2", "--vocab=300", "--vocab-multiple=8")
    assert torch.equal(logits(tmp_path / "back")[..., :257], logits(straight)[..., :257])


def test_an_average_of_checkpoints(straight: Path, tmp_path: Path) -> None:
    steps = [found.path for found in Store(straight / "checkpoints").list()][-3:]
    convert(steps[0], tmp_path / "mean", "--average", *steps[1:])
    convert(steps[0], tmp_path / "tilted", "--average", steps[1], "--average-weights=1,3")
    convert(steps[0], tmp_path / "same", "--average", steps[0], steps[0], steps[0])
    opened = [open_run(step).weights for step in steps]
    mean, tilted, same = (open_run(tmp_path / name).weights for name in ("mean", "tilted", "same"))
    for name in mean.shapes():
        one, two, three = (weights.read(name).double() for weights in opened)
        assert torch.equal(mean.read(name), ((one + two + three) / 3).float())
        assert torch.equal(tilted.read(name), (0.25 * one + 0.75 * two).float())
        assert torch.equal(same.read(name), one.float())


def test_a_vocabulary_keeps_the_optimizer_and_trains_on(straight: Path, tmp_path: Path) -> None:
    convert(straight, tmp_path / "wide", "--vocab=300", "--vocab-multiple=16")
    assert torch.equal(logits(tmp_path / "wide")[..., :257], logits(straight)[..., :257])
    before, after = open_run(straight), open_run(tmp_path / "wide")
    assert (before.step, before.state["counters"]) == (after.step, after.state["counters"])
    for kind, moments in before.moments.items():
        for name in moments.shapes():
            old, new = moments.read(name), after.moments[kind].read(name)
            assert torch.equal(
                new[: len(old)] if "token" not in name else new[:257], old[:257] if "token" in name else old
            )
            assert old.shape == new.shape or (old.shape[0] < 304 == new.shape[0] and not new[257:].any())
    convert(straight, tmp_path / "light", "--vocab-multiple=16", "--weights-only")
    assert not open_run(tmp_path / "light").moments


def test_files_for_a_layout_hold_the_same_run(straight: Path, corpus: Path, triaxis: Triaxis) -> None:
    """Rewritten, then gone on with, everything included: as if nothing had been rewritten."""
    here = triaxis.directory
    step = Store(straight / "checkpoints").path(60)
    convert(step, here / "cut", "--layout=2x2x2")
    convert(here / "cut", here / "whole", "--layout=1x1x1")
    assert read_manifest(resolve(here / "cut")).world_size == 8
    one, other = open_run(step), open_run(here / "whole")
    for mine, theirs in ((one.weights, other.weights), *((one.moments[k], other.moments[k]) for k in one.moments)):
        assert all(torch.equal(mine.read(name), theirs.read(name)) for name in mine.shapes())
    begin = [f"run.init_from={here / 'cut'}", "run.init_what=everything", "run.name=on"]
    triaxis.run("train", *straight_recipe(corpus, train__max_steps=64), *begin)
    assert curve(here / "runs" / "on") == curve(straight)[60:64]


def test_a_dense_run_trains_on_as_a_deeper_mixture(straight: Path, corpus: Path, triaxis: Triaxis) -> None:
    """Several conversions in one, and the recipe that comes with the result."""
    here = triaxis.directory
    convert(straight, here / "copies", "--experts=4")
    grown = ["--depth=0-1,1", "--identity", "--vocab=270"]
    convert(straight, here / "parts", *grown, "--experts=8", "--granularity=4", "--top-k=4")
    for name, told in (("copies", (4, 2, 64, 1.0)), ("parts", (8, 4, 16, 4.0))):
        moe = load_model(here / name)[1].model.moe
        assert (moe.experts, moe.top_k, moe.expert_size, moe.scale) == told
        torch.testing.assert_close(logits(here / name)[..., :257], logits(straight)[..., :257], rtol=0, atol=1e-5)
    # what routers remember is there for whoever turns it on
    options = ["model.moe.bias_rate=0.01", "model.moe.aux_scope=global_batch", "train.validation_tokens=0"]
    recipe = [part for part in minute(corpus, 1) if not part.startswith(("model.", "run.name", "train.validation"))]
    begin = ["--config-dir", "parts/recipes", "model=parts", "run.init_from=parts", "run.name=on"]
    triaxis.run("train", *begin, *recipe, *options)
    assert load_model(here / "runs" / "on")[1].model.layers == 3
    convert(here / "runs" / "on", here / "again", "--first-layers=1")
    assert "layers.0.feed_forward.router.bias" in names_of(here / "again")
    first, dense = records(here / "runs" / "on", "step")[0], records(straight, "step")[-1]
    assert abs(first["loss"] - dense["loss"]) < 0.3, "the first step begins where the dense model ended"


def test_weights_alone_are_no_run_to_go_on_with(straight: Path, tmp_path: Path) -> None:
    convert(straight, tmp_path / "half", "--first-layers=1")
    recipe = load_model(tmp_path / "half")[1]
    mesh = SimpleNamespace(rank=0, world_size=1)
    begin = replace(recipe.run, init_from=str(tmp_path / "half"), init_what="everything")
    for one, directory in ((recipe, "half"), (replace(recipe, run=begin), "new")):
        with pytest.raises(CheckpointError, match="holds weights alone"):
            Checkpoints(one, tmp_path / directory, mesh, lambda kind, message: None)  # type: ignore[arg-type]


def test_a_folder_is_converted_as_it_is_imported(tmp_path: Path) -> None:
    transformers_model(DIALECTS["llama-grouped"]).save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "whole")
    convert(tmp_path / "theirs", tmp_path / "deep", "--depth=0,0,1", "--identity", "--vocab-multiple=4")
    tokens = TOKENS % 61
    assert torch.equal(logits(tmp_path / "deep", tokens)[..., :61], logits(tmp_path / "whole", tokens))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--first-layers=0"], "at least 1"),
        (["--first-layers=3"], "the model has 2"),
        (["--depth=0-5"], "layers 0 to 1"),
        (["--depth=1-0"], "not '1-0'"),
        (["--depth=a"], "not 'a'"),
        (["--depth=0,1", "--identity"], "no layer occurs twice"),
        (["--first-layers=1", "--identity"], "--identity: has no effect without --depth"),
        (["--vocab=100"], "the model has 257"),
        (["--vocab=300", "--vocab-fill=noise"], "choose mean or init"),
        (["--experts=6", "--granularity=4"], "must be a multiple of --granularity=4"),
        (["--top-k=2"], "--top-k: has no effect without --experts"),
        (["--experts=1"], "at least 2"),
        (["--average"], "needs other runs"),
        (["--average-weights=1,2"], "without --average"),
        (["--first-layers=1", "--weights-only"], "keeps weights alone"),
        (["--layout=2x2"], "degrees of tensor"),
        (["--layout=4x1x1"], "model.heads=2"),
        (["--layout=1x1x1", "--shard-gb=1"], "--shard-gb: has no effect"),
        (["--layout=1x1x1", "--dtype=bf16"], "optimizer state is float32"),
        (["--vocab=300", "--vocab=301"], "given twice"),
    ],
)
def test_refusals_leave_nothing(options: list[str], told: str, straight: Path, tmp_path: Path) -> None:
    with pytest.raises((RecipeError, ModelError, ValueError), match=told):
        convert_command([str(straight), str(tmp_path / "out"), *options])
    assert list(tmp_path.iterdir()) == []


def test_models_of_other_shapes_have_no_mean(straight: Path, tmp_path: Path) -> None:
    convert(straight, tmp_path / "half", "--first-layers=1")
    with pytest.raises(ModelError, match="model.layers is 2 here and 1 there"):
        convert(straight, tmp_path / "out", "--average", tmp_path / "half")
    with pytest.raises(RecipeError, match="must be numbers"):
        convert(straight, tmp_path / "out", "--average", straight, "--average-weights=a,b")


def test_the_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher.convert import FLAGS, VALUES

    convert("--help")
    told = capsys.readouterr().out
    assert all(name in told for name in (*FLAGS, *VALUES, "--average"))
