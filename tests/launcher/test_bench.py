"""The bench: its arithmetic on made-up turns, and the whole of it with a minute model. Nothing here asserts a speed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from launcher.bench import idle, layouts
from launcher.bench.arena import Arena, at_one_process
from launcher.bench.idle import Naps
from launcher.bench.measure import SAVE_EVERY, Rounds, save_figures
from launcher.bench.show import show
from launcher.bench.train import main, run
from launcher.bench.turns import BenchError, Contender, Turn
from launcher.bench.utilisation import NO_GPU
from launcher.compose import build_recipe, compose_tree
from parallel.check import resolve_world
from parallel.profile import Span
from parallel.schedule import SCHEDULES, stages_per_rank
from parallel.timeline import timeline


def minute_model(directory: Path) -> list[str]:
    """Overrides for a model of some thousand parameters on a corpus of bytes."""
    text = directory / "text"
    text.mkdir(exist_ok=True)
    for number in range(40):
        (text / f"{number}.txt").write_text(f"document {number} counts to {number} and no further\n" * 20)
    model = ("hidden_size=32", "layers=2", "heads=2", "ffn_size=64", "max_sequence=64")
    return [
        "experiment=tiny",
        *(f"model.{option}" for option in model),
        *("corpus=files", "corpus.name=minute", f"corpus.sources=[{text}]", f"corpus.directory={directory}/corpus"),
        *("tokenizer=byte", "train.sequence_length=32", "train.batch_tokens=128", "train.micro_batch=2"),
        *("precision=fp32", "cluster.device=cpu", "cluster.threads=1", f"run.dir={directory}/runs"),
    ]


def test_a_bench_of_a_minute_model_has_every_figure(tmp_path: Path) -> None:
    overrides = minute_model(tmp_path)
    figures = run(build_recipe(compose_tree(overrides)), rounds=2, steps=2, overrides=overrides)

    speed = figures["speed"]
    assert set(speed["tokens_per_second"]) == {"triaxis", "bare", "trainer"}
    assert all(value > 0 for value in speed["tokens_per_second"].values())
    assert all(0 < value < math.inf for name in ("bare", "trainer") for value in speed[f"against_{name}"].values())
    assert speed["loss_difference"] < 1e-5, "Triaxis and the bare loop must do the same work"

    assert figures["startup"]["launcher"]["compose"] > 0
    rank = figures["startup"]["rank"]
    assert {"interpreter and imports", "mesh", "engine and initial weights", "first batch", "first step"} <= rank.keys()
    assert all(seconds > 0 for seconds in rank.values())

    memory = figures["memory"]["contenders"]
    assert all(sizes["peak"] > sizes["imported"] > 0 for sizes in memory.values())
    assert figures["memory"]["peak_ratio"] > 0

    for name in ("asynchronous", "synchronous"):
        found = figures["checkpoint"][name]
        assert found["stall_steps"] > 0 and found["step_beside_writer"] > 0 and found["saves"] == 2
    assert figures["utilisation"] == {"skipped": NO_GPU}
    assert not list((tmp_path / "runs").iterdir()), "a bench leaves nothing behind"

    screen = io.StringIO()
    show(json.loads(json.dumps(figures)), Console(file=screen, width=120))
    assert "bare PyTorch loop" in screen.getvalue() and "skipped" in screen.getvalue()


def test_ratios_are_taken_within_a_round() -> None:
    rounds = Rounds()
    for slowness in (1.0, 7.0, 3.0):  # the machine's, which all of a round meet alike
        rounds.add("triaxis", Turn(seconds=[99.0, slowness, slowness], losses=[1.0]))
        rounds.add("bare", Turn(seconds=[99.0, 0.5 * slowness, 0.5 * slowness], losses=[1.0]))
    assert rounds.speed_against("triaxis", "bare") == {"median": 0.5, "low": 0.5, "high": 0.5}


def test_a_save_costs_its_stall_and_what_the_writer_takes_from_steps() -> None:
    seconds = [1.0] * (2 * SAVE_EVERY)
    seconds[SAVE_EVERY] = 0.25 + 1.5  # the stall, then a step beside the writer
    turn = Turn(seconds=seconds, stalls={SAVE_EVERY - 1: 0.25}, committed=[SAVE_EVERY])
    figures = save_figures([turn], turn)
    assert (figures["stall_steps"], figures["step_beside_writer"], figures["cost_steps"]) == (0.25, 1.5, 0.75)


def test_the_recipe_of_a_bench_is_one_quiet_process(tmp_path: Path) -> None:
    wide = ["parallel=3d", "parallel.context=2", "parallel.context_method=ulysses", "parallel.expert=2"]
    overrides = [*minute_model(tmp_path), *wide, "run.name=mine"]
    recipe = build_recipe(compose_tree(overrides))
    from launcher.submit import build_corpus

    build_corpus(recipe)
    quiet = at_one_process(recipe, tmp_path / "scratch")
    assert (quiet.parallel.tensor, quiet.parallel.pipeline, quiet.parallel.data) == (1, 1, 1)
    assert (quiet.parallel.context, quiet.parallel.expert) == (1, 1)
    assert resolve_world(quiet.parallel, 1).replicas == 1
    assert (quiet.train.validate_every_tokens, quiet.checkpoint.every_tokens, quiet.tracker.wandb) == (0, 0, "off")
    assert quiet.run.dir == str(tmp_path / "scratch")


def test_a_contender_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    contender = Contender("launcher.bench.nowhere", {}, tmp_path / "log")
    with pytest.raises(BenchError, match="No module named launcher.bench.nowhere"):
        contender.ready()
    contender.close()


def test_a_mask_that_other_contenders_lack_is_refused(tmp_path: Path) -> None:
    recipe = build_recipe(compose_tree([*minute_model(tmp_path), "model.document_mask=true"]))
    from launcher.submit import build_corpus

    build_corpus(recipe)
    with pytest.raises(ValueError, match=r"model.document_mask=true.*set model.document_mask=false"):
        Arena(recipe, 3)


def test_rounds_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2 rounds of 1 step"):
        main([*minute_model(tmp_path), "--rounds", "1"])


def test_a_bench_of_layouts_has_every_schedule_and_both_engines(tmp_path: Path) -> None:
    recipe = build_recipe(compose_tree([*minute_model(tmp_path), "train.micro_batch=1"]))
    naps = Naps(unit=0.002, micro_batches=4, steps=2)
    figures = layouts.run(recipe, naps, rounds=2, steps=1, pipelines=[2])

    assert [found["schedule"] for found in figures["idle"]] == list(SCHEDULES)
    for found in figures["idle"]:
        assert 0 < found["idle"] < 1 and 0 < found["theory"] < 1, found
        assert found["against_ideal"] > 1, "nobody wakes early"
        assert found["against_theory"] == pytest.approx(found["against_ideal"] / found["theory_against_ideal"])

    assert [found["layout"] for found in figures["engines"]] == list(layouts.LAYOUTS)
    for found in figures["engines"]:
        assert set(found["tokens_per_second"]) == {"deepspeed", "torch"}
        assert 0 < found["ratio"]["low"] <= found["ratio"]["median"] <= found["ratio"]["high"]
        assert found["loss_difference"] < 1e-5, "both engines must do the same work"

    screen = io.StringIO()
    layouts.show(json.loads(json.dumps(figures)), Console(file=screen, width=160))
    assert "dualpipev" in screen.getvalue() and "tensor 2" in screen.getvalue()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_figures_of_a_step_as_in_theory_are_those_of_theory(schedule: str) -> None:
    shrinking = []
    for micro_batches in (8, 16):
        config = idle.layout(schedule, 2)
        naps = Naps(unit=0.5, micro_batches=micro_batches, steps=1)
        unit = naps.unit / stages_per_rank(config)
        step: list[list[Span]] = [[], []]
        for slot in timeline(config, micro_batches):
            begin, end = 7 + unit * slot.begin, 7 + unit * slot.end
            step[slot.rank].append(Span(slot.stage, slot.kind, slot.micro_batch, begin, end))
        found = idle.figures_of(schedule, 2, naps, [step])
        assert found["idle"] == pytest.approx(found["theory"]) and found["against_theory"] == pytest.approx(1)
        shrinking.append(found["theory"])
    assert shrinking[1] < shrinking[0], "more micro-batches shrink the bubble"


def test_a_stage_sleeps_apart_for_its_input_and_for_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(idle.time, "sleep", lambda seconds: slept.append(seconds) if seconds else None)
    stage = idle.NappingStage(2.0, first=False)
    x = torch.ones(idle.POSITIONS, 1, idle.WIDTH, requires_grad=True)
    y = stage(x)
    assert slept == [2.0]
    torch.autograd.grad(y.sum(), x, retain_graph=True)
    assert slept == [2.0] * 2
    torch.autograd.grad(y.sum(), stage.weight, retain_graph=True)
    assert slept == [2.0] * 3
    y.sum().backward()
    assert slept == [2.0] * 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--micro-batches", "6"], r"--micro-batches=6: .*at least 8 micro-batches.*give a multiple of 8"),
        (["--pipelines", "1"], "--pipelines=1: one stage has no bubble"),
        (["--pipelines", "two"], "--pipelines=two: give degrees with commas"),
        (["parallel.recompute=block"], "parallel.recompute=block: has no effect on bench layouts"),
        (["--unit", "0"], "--unit=0: stages must sleep"),
        (["--rounds", "1"], "at least 2 rounds of 1 step"),
        (["model.heads=3", "model.kv_heads=3", "model.hidden_size=48"], "model.heads=3: does not divide"),
    ],
)
def test_layouts_that_cannot_be_compared_are_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    own = [text for text in minute_model(tmp_path) if text != "precision=fp32"]
    with pytest.raises(ValueError, match=message):
        layouts.main([*own, "train.micro_batch=1", *flags])
