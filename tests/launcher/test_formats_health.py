"""Figures of block formats in a run: told, filed, drawn, warned of, and refused where there can be none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.callbacks.formats import FormatsFile
from launcher.callbacks.metrics import MetricsFile
from launcher.callbacks.tensorboard import DIRECTORY, TensorBoardTracker
from launcher.callbacks.wandb import WandbTracker
from launcher.check import check_formats
from launcher.compose import build_recipe, compose_tree
from launcher.config import RecipeError
from launcher.formats import GRADIENT_BIAS, LAST_BIN, LAST_BIN_ELSEWHERE, LEAST, SETTLING, FormatsWatch
from launcher.report.formats import formats_picture, read_formats
from launcher.report.theme import DARK, LIGHT
from models.formats.health import tally
from models.formats.operand import operand
from models.formats.telemetry import LayerFormats
from models.precision import BLOCKS
from tests.launcher.running import Triaxis, minute
from tests.launcher.test_callbacks import step, view

EVERY = {
    "tracker__formats_every_steps": 2,
    "checkpoint__every_tokens": 4 * 128,
    "train__sequence_length": 32,
    "model__hidden_size": 64,
    "model__vocab_multiple": 32,
    "precision__products__high": "[embeddings,router]",
}
FIGURES = {"format_saturated", "format_last_bin", "format_underflow", "format_snr", "format_gradient_bias"}


def operand_of(**changes: object) -> LayerFormats:
    well = LayerFormats("layers.0.attention.qkv", "forward", "activation", "mxfp6_e3m2", 0.2, 0.02, 0.01, 25.0, -0.005)
    return replace(well, **changes)  # type: ignore[arg-type]


GRADIENT = {"product": "input_gradient", "role": "gradient"}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """Six steps on two pipeline stages, of which the second and every further one is counted; gone on with to the eighth."""
    triaxis = Triaxis(tmp_path_factory.mktemp("formats"))
    recipe = [text for text in minute(corpus, 8, tracker__report=True, **EVERY) if text != "precision=fp32"] + [
        "precision=mxfp4_mxfp6"
    ]
    try:
        triaxis.run("train", *recipe, "parallel.pipeline=2", "parallel.engine=torch", "train.max_steps=6")
        triaxis.run("train", *recipe)
    finally:
        triaxis.end()
    return triaxis.directory / "runs" / "run"


def test_a_run_tells_figures_in_the_steps_that_are_due(run: Path) -> None:
    steps = [line for line in lines_of(run / "metrics.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 9))
    for line in steps:
        assert line.keys() & FIGURES == (set() if line["step"] % 2 else FIGURES) and "formats" not in line
    told = lines_of(run / "formats.jsonl")
    assert [line["step"] for line in told] == [2, 4, 6, 8]
    for line in told:
        assert (
            len(line["operands"]) == (2 * 4 + 1) * 6
        )  # linear layers of two layers, the head; operands of three products
        assert {one["layer"].split(".")[1] for one in line["operands"]} == {"projection", "0", "1"}
        assert line["operands"] != told[0]["operands"] or line is told[0]


def test_a_bias_is_warned_of_once_a_process(run: Path) -> None:
    """The head's gradients are (probability - 1) / 128 at every target: nearly a power of two, clamped to 7/8 of it."""
    events = [
        line for line in lines_of(run / "metrics.jsonl") if line["kind"] == "event" and line["event"] == "warning"
    ]
    told = [(line["step"], line["text"]) for line in events if "a bias of more than" in line["text"]]
    assert [step for step, _ in told] == [2, 8]
    assert all("gradient of head.projection" in text and "multiplied by 0.8" in text for _, text in told), told


def test_the_report_draws_it(run: Path) -> None:
    assert "<h2>Formats</h2>" in (run / "report.html").read_text()
    assert (run / "report_formats.png").read_bytes().startswith(b"\x89PNG")


def test_a_resume_takes_out_what_comes_again(tmp_path: Path) -> None:
    told = operand_of(snr=math.inf)
    for start, last in ((0, 6), (4, 8)):
        for callback in (FormatsFile(), MetricsFile()):
            callback.on_start(view(tmp_path, start_step=start))
            for number in range(start + 1, last + 1):
                callback.on_step(step(number, formats=(told,) if number % 2 == 0 else ()))
    assert [line["step"] for line in lines_of(tmp_path / "formats.jsonl")] == [2, 4, 6, 8]
    (operand,) = lines_of(tmp_path / "formats.jsonl")[0]["operands"]
    assert operand == {
        "layer": "layers.0.attention.qkv",
        "product": "forward",
        "role": "activation",
        "format": "mxfp6_e3m2",
        "saturated": 0.2,
        "last_bin": 0.02,
        "underflow": 0.01,
        "snr": None,
        "bias": -0.005,
    }
    metrics = [line for line in lines_of(tmp_path / "metrics.jsonl") if line["kind"] == "step"]
    assert metrics[1]["format_snr"] is None and "format_gradient_bias" not in metrics[1]


def test_trackers_have_the_headline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard reads it back; wandb is handed the same names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    told = (operand_of(), operand_of(**GRADIENT, saturated=0.3))
    board, tracker, logged = TensorBoardTracker(), WandbTracker(), []
    monkeypatch.setattr(tracker, "_record", lambda number, values: logged.append(values))
    board.on_start(view(tmp_path))
    for number in (1, 2):
        for callback in (board, tracker):
            callback.on_step(step(number, formats=told if number == 2 else ()))
    board.on_end("finished")
    events = EventAccumulator(str(tmp_path / DIRECTORY))
    events.Reload()
    for name, value in (("format_saturated", 0.3), ("format_gradient_bias", -0.005)):
        (event,) = events.Scalars(f"train/{name}")
        assert event.step == 2 and event.value == pytest.approx(value)
        assert logged[1][f"train/{name}"] == value and f"train/{name}" not in logged[0]


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_picture_takes_what_there_is(theme: object, tmp_path: Path) -> None:
    """One step; nothing but activations; a figure that is null; other operands in a later phase; a torn line."""
    operands = [{**vars(operand_of()), "snr": None}]
    lines = [{"kind": "formats", "step": 1, "tokens": 100, "operands": operands}]
    (tmp_path / "formats.jsonl").write_text(json.dumps(lines[0]) + "\n{torn")
    assert read_formats(tmp_path) == lines and read_formats(tmp_path / "none") == []
    assert formats_picture(lines, theme, "png").startswith(b"\x89PNG")  # type: ignore[arg-type]
    later = [*operands, vars(operand_of(**GRADIENT, layer="head.projection", format="nvfp4"))]
    lines.append({"kind": "formats", "step": 2, "tokens": 200, "operands": later})
    assert b"<svg" in formats_picture(lines, theme, "svg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            operand_of(last_bin=0.25),
            ["mxfp6_e3m2", "activation of layers.0.attention.qkv (forward)", "25.0%", "2506.20752"],
        ),
        (operand_of(**GRADIENT, bias=-0.107), ["gradient", "0.893", "5%", "2506.20752"]),
        (operand_of(**GRADIENT, snr=4.2), ["gradient", "4.2 dB", "5"]),
    ],
)
def test_a_cause_is_warned_of_once(bad: LayerFormats, words: list[str]) -> None:
    watch = FormatsWatch()
    assert watch.look([operand_of()]) == [] and watch.look([]) == []
    (message,) = watch.look([operand_of(), bad, replace(bad, layer="layers.1.attention.qkv")])
    for word in [*words, "and 1 more", "precision.products.scale=rceil"]:
        assert word in message, message
    assert watch.look([bad]) == []


def test_a_rise_is_told_against_the_beginning_of_a_run() -> None:
    watch = FormatsWatch()
    for _ in range(SETTLING):
        assert watch.look([operand_of(last_bin=0.08)]) == []
    assert watch.look([operand_of(last_bin=0.119)]) == []
    (message,) = watch.look([operand_of(last_bin=0.13)])
    assert "13.0%" in message and "up from 8.0%" in message
    small = FormatsWatch()
    for _ in range(SETTLING):
        small.look([operand_of(last_bin=0.01)])
    assert small.look([operand_of(last_bin=LEAST)]) == []  # ten times of little is little


def test_along_tokens_and_in_weights_the_last_bin_may_be_full() -> None:
    along = operand_of(product="weight_gradient", last_bin=0.5)
    assert FormatsWatch().look([along, operand_of(role="weight", last_bin=0.5, bias=-0.2, snr=1.0)]) == []


@pytest.mark.parametrize("format", BLOCKS)
def test_ordinary_numbers_are_not_warned_of(format: str) -> None:
    """As launcher/formats.py says of its limits."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(128, 128, generator=generator) - 0.5
    laplace = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    for x in (torch.randn(128, 128, generator=generator), laplace):
        for scale in ("floor", "rceil") if format.startswith("mx") else ("floor",):
            found = operand(
                x,
                format,
                -1,
                scale=scale,
                scope="row",
                rounding="nearest_even",
                square=False,
                drawn=None,
                largest=lambda amax, whole: amax,
            )
            sums = tally(x, found).tolist()
            for product, role in (("forward", "activation"), ("input_gradient", "gradient")):
                one = LayerFormats.of("layers.0.up", product, role, format, sums)
                assert FormatsWatch().look([one]) == [], one
                assert (
                    one.last_bin < LAST_BIN.get(format, LAST_BIN_ELSEWHERE) / 2 and abs(one.bias) < GRADIENT_BIAS * 0.6
                )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["tracker.formats_every_steps=5", "no product is quantised", "precision=mxfp8"]),
        (["precision=bf16"], ["tracker.formats_every_steps=5", "no product is quantised"]),
        (["precision=mxfp8", "parallel.compile=block"], ["tracker.formats_every_steps=5", "parallel.compile=block"]),
        (["precision=mxfp8"], []),
    ],
)
def test_what_could_not_be_counted_is_refused(options: list[str], words: list[str]) -> None:
    recipe = build_recipe(compose_tree(["experiment=tiny", *options, "tracker.formats_every_steps=5"]))
    if not words:
        check_formats(recipe)
        return
    with pytest.raises(RecipeError) as told:
        check_formats(recipe)
    for word in words:
        assert word in str(told.value)


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"tracker.formats_every_steps=-1: must be at least 0"):
        build_recipe(compose_tree(["experiment=tiny", "tracker.formats_every_steps=-1"]))
