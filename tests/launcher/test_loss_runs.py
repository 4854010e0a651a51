"""Options of the loss through the launcher: runs with a head that gives losses equal those with logits, and bad values are
refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.compose import build_recipe, compose_tree
from launcher.plan.held import FUSED_LOGITS
from launcher.plan.memory import Work, memory_of
from models.errors import ModelError
from models.kernels.linear_cross_entropy.chunks import LOGITS_BYTES
from tests.launcher.running import Triaxis, curve, minute, validations

STEPS = 6


def trained(triaxis: Triaxis, corpus: Path, name: str, *options: str) -> Path:
    sizes = {"train__sequence_length": 32, "model__layers": 4, "model__vocab_multiple": 4, "run__name": name}
    triaxis.run("train", *minute(corpus, STEPS, "loss.z_loss=1e-3", "loss.label_smoothing=0.1", *options, **sizes))
    return triaxis.directory / "runs" / name


def assert_alike(one: Path, other: Path) -> None:
    ours, theirs = curve(one), curve(other)
    assert len(ours) == len(theirs) == STEPS
    for step, expected in zip(ours, theirs, strict=True):
        assert step[3:5] == pytest.approx(expected[3:5], rel=1e-4)
    for step, losses in validations(other).items():
        assert validations(one)[step] == pytest.approx(losses, rel=1e-4)


def test_a_run_whose_head_gives_losses_is_one_with_logits(triaxis: Triaxis, corpus: Path) -> None:
    logits = trained(triaxis, corpus, "logits")
    assert_alike(trained(triaxis, corpus, "losses", "loss.fused=true"), logits)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "deepspeed"])
def test_so_is_one_on_three_axes(engine: str, triaxis: Triaxis, corpus: Path) -> None:
    logits = trained(triaxis, corpus, "logits")
    degrees = ["parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2", f"parallel.engine={engine}"]
    degrees += ["parallel.schedule=gpipe"] * (engine == "torch")
    assert_alike(trained(triaxis, corpus, "losses", "loss.fused=true", *degrees), logits)


def test_the_plan_knows_what_a_chunk_of_logits_takes() -> None:
    plain, fused = (
        build_recipe(compose_tree(["model=llama3_8b", f"loss.fused={fused}", "train.micro_batch=8"]))
        for fused in (False, True)
    )
    config = replace(plain.parallel, data=1)
    needed, less = (memory_of(Work.of(recipe, "bf16"), config, 8) for recipe in (plain, fused))
    rows, vocabulary, hidden = 8 * plain.train.sequence_length, plain.model.padded_vocab, plain.model.hidden_size
    assert needed.logits - less.logits == 2 * rows * vocabulary - 4 * vocabulary * hidden - 2 * rows * hidden
    assert less.working - needed.working == FUSED_LOGITS
    assert needed.activations == less.activations
    assert FUSED_LOGITS == LOGITS_BYTES


@pytest.mark.parametrize(("option", "limit"), [("loss.z_loss=-1", "at least 0"), ("loss.label_smoothing=1", "below 1")])
def test_values_that_cannot_be_are_refused(option: str, limit: str) -> None:
    with pytest.raises(ModelError, match=option) as refused:
        build_recipe(compose_tree([option]))
    assert limit in str(refused.value)
