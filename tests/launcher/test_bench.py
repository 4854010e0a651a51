"""The bench: its arithmetic on made-up turns, and the whole of it with a minute model. Nothing here asserts a speed."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from launcher.bench.arena import Arena, at_one_process
from launcher.bench.measure import SAVE_EVERY, Rounds, save_figures
from launcher.bench.show import show
from launcher.bench.train import main, run
from launcher.bench.turns import BenchError, Contender, Turn
from launcher.bench.utilisation import NO_GPU
from launcher.compose import build_recipe, compose_tree
from parallel.check import resolve_world


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
