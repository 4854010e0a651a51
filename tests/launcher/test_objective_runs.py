"""Every recipe of an objective trains, through the launcher, on three axes as in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from launcher.compose import build_recipe, compose_tree, groups
from tests.launcher.running import Triaxis, curve, minute, validations
from tests.launcher.test_objective_checks import NEEDS

STEPS = 6


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The made-up documents with a tokenizer that has every special token."""
    directory = tmp_path_factory.mktemp("special") / "corpus"
    names = build_recipe(compose_tree(["tokenizer=bpe_special"])).tokenizer.special_tokens
    tokenizer = TokenizerConfig("bpe", vocab_size=300, special_tokens=names)
    build(CorpusConfig("special", (str(text),), str(directory), validation_fraction=0.2, workers=1), tokenizer)
    return directory


def trained(triaxis: Triaxis, special: Path, name: str, *layout: str) -> Path:
    """The run directory of a few steps of one objective."""
    sizes = {"train__sequence_length": 32, "model__layers": 4, "run__name": f"run{len(layout)}"}
    triaxis.run("train", *minute(special, STEPS, f"objective={name}", *NEEDS.get(name, []), *layout, **sizes))
    return triaxis.directory / "runs" / f"run{len(layout)}"


@pytest.mark.slow
@pytest.mark.parametrize("name", groups()["objective"])
def test_a_recipe_trains_on_three_axes_as_in_one_process(name: str, triaxis: Triaxis, special: Path) -> None:
    alone = trained(triaxis, special, name)
    rows = 2 if name == "reweighted" else 1  # what a micro-batch holds decides there
    degrees = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2", f"train.micro_batch={rows}")
    together = trained(triaxis, special, name, *degrees)
    ours, theirs = curve(together), curve(alone)
    assert len(ours) == len(theirs) == STEPS
    for step, expected in zip(ours, theirs, strict=True):
        assert step[-1] == expected[-1], "another global batch"
        assert step[3:5] == pytest.approx(expected[3:5], rel=1e-4)
    for step, losses in validations(alone).items():
        assert validations(together)[step] == pytest.approx(losses, rel=1e-4)
