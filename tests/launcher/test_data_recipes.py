"""Every recipe about data trains, through the launcher, on three axes as in one process; what it read can be told again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.check import check_corpus, check_layout, check_streams, with_budget
from launcher.compose import build_recipe, compose_tree, groups
from launcher.config import Recipe
from tests.launcher.running import BATCH, Triaxis, curve, minute

METHODS = (
    "babylm",
    "batch_ramp",
    "dataset_decomposition",
    "grow_length",
    "long_context",
    "packed_documents",
    "staged_mixture",
)
READINGS = {
    "best_fit": [],
    "decomposition": ["data.buckets.lengths=[8,16,32]"],
    "default": [],
    "document": [],
    "long_documents": ["data.long_tokens=300"],
    "mixture": [
        "data.sources=[{path: CORPUS, name: a, weight: 0.7}, {path: CORPUS, name: b, weight: 0.3, epochs: 50}]"
    ],
    "ordered": ["data.ordering=short", "data.shuffle=none"],
    "window": ["data.window=2"],
}
AXES = ("parallel.tensor=2", "parallel.pipeline=2", "parallel.data=2")
SHRINK = 16
"""Sequences and batches of the experiments are so much shorter here."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """The made-up documents as bytes, with the orderings that recipes name."""
    from data.build import build
    from data.config import CorpusConfig, TokenizerConfig
    from data.orderings import METHODS as ORDERINGS
    from data.orderings import make

    directory = tmp_path_factory.mktemp("readings") / "corpus"
    options: dict[str, Any] = {"validation_fraction": 0.2, "workers": 1, "block_tokens": 3000, "shard_tokens": 20000}
    build(CorpusConfig("readings", (str(text),), str(directory), **options), TokenizerConfig("byte"))
    for name, by in (("short", "length"), ("words", "shuffle")):
        make(directory, name, by, ORDERINGS[by](), ("train",), lambda done, total, note: None)
    return directory


def shrunk(name: str, corpus: Path) -> dict[str, Any]:
    """An experiment as plain data, at a size that trains in seconds."""
    tree = compose_tree([f"experiment={name}", f"corpus.directory={corpus}"])
    tiny = compose_tree([part for part in minute(corpus, 4) if "span_tokens" not in part])
    for section in ("run", "model", "tracker", "precision", "cluster", "optimizer"):
        kept = {key: tree["model"][key] for key in ("document_mask", "reset_position_ids", "attention_kernel")}
        tree[section] = {**tiny[section], **(kept if section == "model" else {})}
    tree["corpus"]["directory"] = "corpora/none"  # what is read is there; nothing is to be built
    tree["model"]["max_sequence"] = 64
    train = tree["train"]
    for field in ("sequence_length", "batch_tokens", "ramp_from", "ramp_increment"):
        train[field] //= SHRINK
    train |= {
        "micro_batch": 2,
        "ramp_tokens": train["ramp_tokens"] and 6 * BATCH,
        "validation_tokens": 64,
        "tokens": 8 * BATCH,
    }
    train |= {"sample_length": 0, "validate_every_tokens": 0, "epochs": train["epochs"] and 0.02}
    tree["data"]["long_tokens"] //= SHRINK
    tree["data"]["buckets"]["lengths"] = [length // SHRINK * 2 for length in tree["data"]["buckets"]["lengths"]]
    for phase in tree["phases"]:
        phase["tokens"] = 4 * BATCH
        for field in ("sequence_length", "batch_tokens"):
            if field in phase.get("train", {}):
                phase["train"][field] //= SHRINK
        if "micro_batch" in phase.get("train", {}):
            phase["train"]["micro_batch"] = 2
        if "long_tokens" in phase.get("data", {}):
            phase["data"]["long_tokens"] //= SHRINK
    tree["schedule"]["warmup_tokens"] = 0
    tree["checkpoint"]["every_tokens"] = 0
    return json.loads(json.dumps(tree).replace('\\"test\\"', '\\"1\\"'))  # some of the texts here


def checked(recipe: Recipe, world: int) -> Recipe:
    recipe = with_budget(check_corpus(recipe))
    check_layout(recipe, world)
    check_streams(recipe)
    return recipe


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_recipes_that_can_be(name: str, corpus: Path) -> None:
    for world in (1, 8):
        tree = shrunk(name, corpus)
        tree["parallel"] |= {"tensor": 2, "pipeline": 2, "data": 2} if world == 8 else {}
        checked(build_recipe(tree), world)


@pytest.mark.parametrize("name", groups()["data"])
def test_readings_are_recipes_that_can_be(name: str, corpus: Path) -> None:
    checked(build_recipe(compose_tree(options(name, corpus))), 1)


def options(name: str, corpus: Path, steps: int = 6) -> list[str]:
    """Overrides of the minute run that reads as a recipe says."""
    own = [part.replace("CORPUS", str(corpus)) for part in READINGS[name]]
    whole = minute(corpus, steps, f"data={name}", *own, model__layers=4)
    return [part for part in whole if "span_tokens" not in part and not (name == "mixture" and "data.path" in part)]


def equal(one: Path, other: Path) -> None:
    """Global batches are the same, losses and norms within rounding."""
    ours, theirs = curve(one), curve(other)
    assert len(ours) == len(theirs) > 0
    for step, expected in zip(ours, theirs, strict=True):
        assert step[-1] == expected[-1], "another global batch"
        assert step[3:5] == pytest.approx(expected[3:5], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", groups()["data"])
def test_every_reading_trains_on_three_axes_as_in_one_process(name: str, corpus: Path, triaxis: Triaxis) -> None:
    triaxis.run("train", *options(name, corpus), "run.name=alone")
    triaxis.run("train", *options(name, corpus), "run.name=together", *AXES)
    runs = triaxis.directory / "runs"
    equal(runs / "together", runs / "alone")
    told = triaxis.run("data", "replay", "runs/together").output
    assert told.count("as logged") == len(curve(runs / "alone"))
    assert "at most once" in triaxis.run("data", "audit", "runs/together").output


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_three_axes_as_in_one_process(name: str, corpus: Path, triaxis: Triaxis) -> None:
    for place, degrees in (("alone", {}), ("together", {"tensor": 2, "pipeline": 2, "data": 2})):
        tree = shrunk(name, corpus)
        tree["parallel"] |= degrees
        tree["model"]["layers"] = 4
        tree["run"] |= {"name": place, "dir": "runs"}
        (triaxis.directory / "recipes" / "experiment").mkdir(parents=True, exist_ok=True)
        text = "# @package _global_\n" + yaml.safe_dump(tree)
        (triaxis.directory / "recipes" / "experiment" / f"{place}.yaml").write_text(text)
        triaxis.run("train", "--config-dir", "recipes", f"experiment={place}")
    runs = triaxis.directory / "runs"
    equal(runs / "together", runs / "alone")
    assert "DIFFERS" not in triaxis.run("data", "replay", "runs/together").output
    assert "at most once" in triaxis.run("data", "audit", "runs/together").output
