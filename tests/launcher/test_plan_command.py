"""`triaxis plan`: the object that it prints, layouts that it finds, runs that it plays, and what it refuses."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.check import check_recipe
from launcher.cli import main
from launcher.compose import build_recipe, compose_tree
from launcher.plan.command import USAGE, wanted_of
from launcher.plan.errors import PlanError
from launcher.plan.evaluate import Task, judge, task_of
from launcher.plan.goodput import Checkpoint, checkpoint_of, goodput_of, share_of
from launcher.plan.search import candidates, search
from launcher.plan.show import with_known_vocabulary
from launcher.plan.simulate import Run, simulate
from models.config import count_parameters
from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES
from parallel.timeline import timeline

KEYS = {
    *("model", "parameters", "active_parameters", "tokens", "flops_per_token", "cluster", "stack", "layout", "memory"),
    *("step", "traffic", "run", "checkpoint", "goodput"),
}


def task(*overrides: str, gpus: int = 16) -> Task:
    recipe = build_recipe(compose_tree(["experiment=llama_1b", "cluster=h100_8x64", *overrides]))
    return task_of(with_known_vocabulary(recipe), gpus)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["plan", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_object_has_its_keys_and_its_figures_agree(capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, "experiment=llama_1b", "cluster=h100_8x64", "gpus=16", "parallel.tensor=2", "--simulate=5")
    assert set(found) == KEYS | {"simulation"}
    assert found["layout"]["tensor"] == 2 and found["layout"]["data"] == 8
    assert sum(found["step"]["parts"].values()) == pytest.approx(found["step"]["seconds"])
    assert sum(found["memory"]["parts"].values()) == found["memory"]["total"] <= found["memory"]["room"]
    run, seconds = found["run"], found["step"]["seconds"]
    assert run["tokens_per_second"] == pytest.approx(2_097_152 / seconds)
    assert run["days"] == pytest.approx(22e9 / run["tokens_per_second"] / 86400)
    assert run["cost"] == pytest.approx(run["days_with_failures"] * 24 * 16 * 2.5)
    assert 0.2 < run["model_utilisation"] <= run["hardware_utilisation"] < 0.8
    assert found["simulation"]["days"]["p5"] <= found["simulation"]["days"]["p95"]


def test_without_a_layout_the_best_is_found_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("experiment=llama_1b", "cluster=h100_8x64", "gpus=4", "train.batch_tokens=65536")
    found = told(capsys, *arguments, f"--out={tmp_path}")
    best = found["search"]["best"]
    assert [one["seconds"] for one in best] == sorted(one["seconds"] for one in best)
    assert found["step"]["seconds"] == best[0]["seconds"] and found["search"]["judged"] > 50
    front = found["search"]["front"]
    assert [one["bytes"] for one in front] == sorted((one["bytes"] for one in front), reverse=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"bars.png", "front.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_what_a_search_proposes_runs_fits_and_is_the_quickest() -> None:
    this = task("train.batch_tokens=65536", gpus=4)
    fabric = this.machine.fabric
    small = replace(fabric, chip=replace(fabric.chip, memory=16 << 30))
    this = replace(this, machine=replace(this.machine, fabric=small))
    found = search(this, keep=3)
    everything = [judge(this, *one) for one in candidates(this, Counter())]
    fitting = [plan for plan in everything if plan.fits]
    assert found.judged == len(everything) > len(fitting) > 0
    assert found.best[0].step.seconds == min(plan.step.seconds for plan in fitting)
    for plan in found.best:
        train = replace(this.recipe.train, micro_batch=plan.micro_batch)
        check_recipe(replace(this.recipe, parallel=plan.parallel, train=train), 4, "cuda")
        assert plan.memory.total <= this.room


def test_every_candidate_passes_the_checks_of_a_run() -> None:
    """A sample of them: that none is refused is the aim; the search checks those that it shows."""
    this = task("train.batch_tokens=262144", "model.layers=8", gpus=8)
    every = list(candidates(this, Counter()))
    for parallel, micro_batch in random.Random(1).sample(every, 30):
        train = replace(this.recipe.train, micro_batch=micro_batch)
        check_recipe(replace(this.recipe, parallel=parallel, train=train), 8, "cuda")


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_the_bubble_is_that_of_the_schedule_when_it_is_played(schedule: str) -> None:
    virtual = {"interleaved_1f1b": 2, "interleaved_zero_bubble": 2}.get(schedule, 1)
    parallel = ParallelConfig(
        pipeline=4, data=1, zero_stage=1, schedule=schedule, virtual_stages=virtual, engine="torch"
    )
    this = task("model.layers=32", "train.batch_tokens=65536", gpus=4)
    plan = judge(this, parallel, 1)
    stages = plan.step.stages
    mean = sum(map(sum, stages)) / len(stages) / 3
    slots = timeline(parallel, 16, [sum(stage) / 3 / mean for stage in stages])
    played = max(slot.end for slot in slots) * mean
    parts = plan.step.parts
    rates, passes = this.machine.rates, this.machine.software.passes
    summed = (
        plan.step.held.all * passes.accumulate * 16 / rates.memory
    )  # gradients of micro-batches, in no stage's times
    own = plan.step.seconds - parts["data"] - parts["optimizer"] - parts["sends"] - summed
    assert own == pytest.approx(played, rel=0.08), (own, played)


def test_the_best_interval_is_the_best_and_playing_agrees() -> None:
    checkpoint = Checkpoint(size=1e12, stall=30.0, write=120.0)
    expected = goodput_of(checkpoint, 4096)
    between = 50_700 * 3600 / 4096
    assert expected.between == pytest.approx(between)
    assert expected.interval == pytest.approx(math.sqrt(2 * 30 * between), rel=0.05)  # Young's
    for factor in (0.5, 2.0):
        assert share_of(factor * expected.interval, checkpoint, between, 600) < expected.share
    run = Run(30 * 86400.0, 4096, checkpoint, expected.interval, spares=10**6)
    outcome = simulate(run, 60, seed=3)
    assert outcome.goodput == pytest.approx(expected.share, abs=0.006)
    assert outcome.failures == pytest.approx(30 * 86400 / expected.share / between, rel=0.1)
    assert simulate(run, 5, seed=3) == simulate(run, 5, seed=3) != simulate(run, 5, seed=4)
    assert simulate(replace(run, spares=0), 20, seed=3).waiting > 0 == outcome.waiting


def test_a_checkpoint_is_as_large_as_its_state() -> None:
    parameters = count_parameters(task().recipe.model)
    found = checkpoint_of(parameters, 16, 8, asynchronous=True)
    assert found.size == 12 * parameters and found.stall < found.write
    assert checkpoint_of(parameters, 16, 8, asynchronous=False).stall == found.write


REFUSED = [
    (["gpus=12"], "gpus=12: not a multiple of cluster.gpus_per_node=8"),
    (["gpus=none"], "gpus=none"),
    (["gpus=8", "cluster.chip=h1000"], "cluster.chip=h1000"),
    (["gpus=16", "cluster.fabric=carrier_pigeon"], "cluster.fabric=carrier_pigeon"),
    (["gpus=8", "--wrong"], USAGE.split()[0]),
    (["gpus=8", "--stack=mine"], "--stack=mine"),
    (["gpus=8", "parallel.tensor=3"], "parallel.tensor=3"),
    (["gpus=8", "model=llama3_405b", "train.sequence_length=8192", "parallel.tensor=8"], "needs"),
    (["gpus=8", "model=llama3_405b", "train.sequence_length=8192"], "none fits"),
    (["gpus=8", "cluster.chip=a100_80gb", "precision=fp8"], "has no fp8"),
    (["cluster=local", "--json"], "cluster.chip"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(one) for one, _ in REFUSED])
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = [] if any(word.startswith("cluster=") for word in arguments) else ["cluster=h100_8x64"]
    assert main(["plan", "experiment=llama_1b", *cluster, "train.batch_tokens=524288", *arguments]) == 1
    assert words in capsys.readouterr().err


def test_words_of_a_command_line() -> None:
    wanted = wanted_of(["experiment=tiny", "gpus=8", "--search", "--out=here", "parallel.tensor=2"])
    assert (wanted.gpus, wanted.search, wanted.out, wanted.fixed) == (8, True, "here", True)
    assert wanted.overrides == ("experiment=tiny", "parallel.tensor=2")
    with pytest.raises(PlanError, match="--simulate=0"):
        wanted_of(["--simulate=0"])
