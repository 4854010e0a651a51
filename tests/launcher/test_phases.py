"""Phases: a run goes from one to the next by itself, and goes on bitwise from anywhere around a border."""

from __future__ import annotations

import itertools
import signal
from functools import partial
from pathlib import Path

import pytest

from parallel.checkpoint.files import data_name
from tests.launcher.conftest import STEPS, straight_recipe
from tests.launcher.running import (
    BATCH,
    INTERRUPTED,
    RATE,
    Done,
    Together,
    Triaxis,
    assert_close_curve,
    assert_same_curve,
    checkpoint,
    committed,
    curve,
    flip_byte,
    last_start,
    minute,
    records,
    rewound,
    validations,
)

FIRST, SECOND = 24, 20  # steps of the two phases; the second has sequences and batches twice as long
BORDER = f"{{name: short, tokens: {FIRST * BATCH}, train: {{sequence_length: 16}}}}"


def growing(corpus: Path, *more: str, **options: object) -> list[str]:
    """Sequence 16 then 32, batch 128 then 256 tokens; a checkpoint every 8 steps of 128."""
    second = f"{{name: long, tokens: {SECOND * 2 * BATCH}, train: {{sequence_length: 32, batch_tokens: {2 * BATCH}}}}}"
    settings = {"checkpoint__every_tokens": 8 * BATCH, "train__validate_every_tokens": 8 * BATCH, **options}
    return minute(corpus, 1, f"phases=[{BORDER},{second}]", *more, **settings)


@pytest.fixture(scope="session")
def straight_phases(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The run directory of both phases that nobody disturbed."""
    triaxis = Triaxis(tmp_path_factory.mktemp("straight_phases"))
    try:
        triaxis.run("train", *growing(corpus))
    finally:
        triaxis.end()
    return triaxis.directory / "runs" / "run"


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path, straight: Path, straight_phases: Path) -> Together:
    """Runs of one process, two at a time, each with its run directory as result."""
    together.add("stopped", lambda triaxis: stop_and_kill(triaxis, corpus))
    together.add("precision", lambda triaxis: change_precision(triaxis, corpus))
    together.add("everything", lambda triaxis: take_everything(triaxis, corpus, straight))
    for step in (16, FIRST, 28):
        together.add(f"from {step}", partial(go_on, corpus=corpus, run=straight_phases, step=step))
    together.add("corrupt", partial(go_on, corpus=corpus, run=straight_phases, step=28, damaged=(28, FIRST)))
    together.add("one phase", lambda triaxis: train_one_phase(triaxis, corpus))
    together.add("weights", lambda triaxis: take_weights(triaxis, corpus, straight))
    wider = minute(corpus, 2, run__init_from=straight, model__ffn_size=128)
    deeper = minute(corpus, 2, run__init_from=straight, model__layers=3)
    together.add("wider", lambda triaxis: triaxis.run("train", *wider, code=1))
    together.add("deeper", lambda triaxis: triaxis.run("train", *deeper, code=1))
    return together


def test_a_run_goes_from_phase_to_phase(straight_phases: Path, straight: Path) -> None:
    found = curve(straight_phases)
    assert [line[1] for line in found] == ["short"] * FIRST + ["long"] * SECOND
    tokens = [line[2] for line in found]
    assert tokens[:FIRST] == [BATCH * (i + 1) for i in range(FIRST)]
    assert tokens[FIRST:] == [FIRST * BATCH + 2 * BATCH * (i + 1) for i in range(SECOND)]
    # the schedule spans the run: cosine from the peak to a tenth over the tokens of both phases
    rates = [line[5] for line in found]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.1 * RATE) and rates[FIRST - 1] > 0.6 * RATE
    # the same text as the plain run of 16-token sequences has, to the border
    assert [line[-1] for line in found[:FIRST]] == [line[-1] for line in curve(straight)[:FIRST]]
    assert len({line[-1] for line in found}) == FIRST + SECOND, "a batch came twice"
    assert FIRST in committed(straight_phases), "the border is a checkpoint"
    assert not [r for r in records(straight_phases, "event") if r["event"] == "resume"], "a border is no resume"
    assert FIRST in validations(straight_phases)
    assert found[-1][3] < found[FIRST][3] < found[0][3]


def go_on(triaxis: Triaxis, corpus: Path, run: Path, step: int, damaged: tuple[int, ...] = ()) -> Path:
    """A run killed after the checkpoint of a step, some checkpoints with an altered bit, and the same command."""
    copy = rewound(run, triaxis.directory / "runs" / "run", step)
    for other in damaged:
        flip_byte(checkpoint(copy, other) / data_name(0))
    triaxis.run("train", *growing(corpus))
    return copy


@pytest.mark.parametrize("step", [16, FIRST, 28])
def test_going_on_from_before_at_and_after_the_border(ran: Together, straight_phases: Path, step: int) -> None:
    run = ran[f"from {step}"]
    assert last_start(run) == step
    assert_same_curve(run, straight_phases)


def test_corrupt_checkpoints_throw_a_run_back_over_the_border(ran: Together, straight_phases: Path) -> None:
    run = ran["corrupt"]
    warnings = [record["text"] for record in records(run, "event") if record["event"] == "warning"]
    assert ["step_000000028" in warnings[0], f"step_{FIRST:09d}" in warnings[1]] == [True, True]
    assert last_start(run) == 16
    assert_same_curve(run, straight_phases)


def stop_and_kill(triaxis: Triaxis, corpus: Path) -> Path:
    """SIGTERM at the last step of the first phase or a little later, then SIGKILL in the second phase, then the end."""
    run = triaxis.directory / "runs" / "run"
    started = triaxis.start("train", *growing(corpus))
    started.until_step(run, FIRST)
    started.process.send_signal(signal.SIGTERM)
    started.wait(120, code=INTERRUPTED)
    assert committed(run)[-1] >= FIRST
    started = triaxis.start("train", *growing(corpus, checkpoint__every_tokens=BATCH))
    started.until_step(run, FIRST + 10)
    started.kill()
    saved = committed(run)[-1]
    triaxis.run("train", *growing(corpus))
    assert last_start(run) in (saved, saved + 1)
    return run


def test_signals_and_kills_around_the_border(ran: Together, straight_phases: Path) -> None:
    assert_same_curve(ran["stopped"], straight_phases)


def train_one_phase(triaxis: Triaxis, corpus: Path) -> Path:
    """The straight run's recipe with its budget in a phase."""
    triaxis.run("train", *straight_recipe(corpus, f"phases=[{{name: main, tokens: {STEPS * BATCH}}}]", train__tokens=7))
    return triaxis.directory / "runs" / "run"


def test_one_phase_is_the_plain_run(ran: Together, straight: Path) -> None:
    assert_same_curve(ran["one phase"], straight)


def change_precision(triaxis: Triaxis, corpus: Path) -> Path:
    """float32 then bf16, each with a schedule of its own; a copy goes on from within the second phase."""
    schedule = f"{{name: linear, warmup_tokens: {4 * BATCH}}}"
    second = f"{{tokens: {16 * BATCH}, precision: {{name: bf16}}, schedule: {schedule}}}"
    options = {"schedule__span": "phase", "checkpoint__every_tokens": 8 * BATCH}
    recipe = minute(corpus, 1, f"phases=[{BORDER},{second}]", **options)
    triaxis.run("train", *recipe)
    run = triaxis.directory / "runs" / "run"
    rewound(run, triaxis.directory / "runs" / "again", 32)
    triaxis.run("train", *recipe, "run.name=again")
    return run


def test_precision_and_schedule_may_change(ran: Together, straight_phases: Path) -> None:
    run = ran["precision"]
    found = curve(run)
    assert found[0][3] == curve(straight_phases)[0][3], "the first phase is in float32"
    assert found[FIRST - 1][5] == pytest.approx(0.1 * RATE), "the first phase's schedule ends with it"
    warm = [line[5] for line in found[FIRST : FIRST + 4]]
    assert warm == pytest.approx([RATE * part for part in (0.25, 0.5, 0.75, 1.0)])
    assert found[-1][5] == pytest.approx(0.1 * RATE)
    assert found[-1][3] < found[FIRST][3] < found[0][3]
    assert last_start(run.with_name("again")) == 32
    assert_same_curve(run.with_name("again"), run)


def test_the_layout_may_change_within_one_world(triaxis: Triaxis, corpus: Path, straight_phases: Path) -> None:
    """Tensor 2 then data 2, the same two processes: the curve of one process, to rounding; from the border, bitwise."""
    second = f"{{name: long, tokens: {SECOND * 2 * BATCH}, train: {{sequence_length: 32, batch_tokens: {2 * BATCH}}}, "
    second += "parallel: {tensor: 1, data: 2}}"
    recipe = growing(corpus, f"phases=[{BORDER},{second}]", parallel__tensor=2, parallel__data=1)
    triaxis.run("train", *recipe)
    run = triaxis.directory / "runs" / "run"
    assert_close_curve(run, straight_phases)
    again = rewound(run, triaxis.directory / "runs" / "again", FIRST)
    triaxis.run("train", *recipe, "run.name=again")
    assert last_start(again) == FIRST
    assert_same_curve(again, run)


# Starting from another run


def take_weights(triaxis: Triaxis, corpus: Path, straight: Path) -> Path:
    """Two steps that change nothing, from the weights of another run."""
    triaxis.run("train", *minute(corpus, 2, optimizer__learning_rate=0, run__init_from=straight))
    return triaxis.directory / "runs" / "run"


def test_weights_of_another_run_begin_a_new_one(ran: Together, straight: Path) -> None:
    """With a learning rate of 0 the weights stay those of the other run, and so does its validation loss."""
    run = ran["weights"]
    assert validations(run)[2] == validations(straight)[STEPS]
    assert last_start(run) == 0
    assert [line[-1] for line in curve(run)] == [line[-1] for line in curve(straight)[:2]], "the text begins anew"


def take_everything(triaxis: Triaxis, corpus: Path, straight: Path) -> Path:
    """From a checkpoint in the middle of another run to its end, with a stop on the way."""
    options = {"run__init_from": checkpoint(straight, 60), "run__init_what": "everything"}
    recipe = straight_recipe(corpus, **options)
    triaxis.run("train", *recipe, "train.max_steps=100")
    run = triaxis.directory / "runs" / "run"
    assert last_start(run) == 60 and committed(run)[-1] == 100
    triaxis.run("train", *recipe)
    return run


def test_everything_of_another_run_goes_on_with_it(ran: Together, straight: Path) -> None:
    run = ran["everything"]
    assert last_start(run) == 100, "its own checkpoint comes before init_from"
    assert curve(run) == curve(straight)[60:]


def test_weights_of_another_model_are_refused(ran: Together) -> None:
    """The message says which tensors do not fit."""
    wider: Done = ran["wider"]
    deeper: Done = ran["deeper"]
    assert "other shapes" in wider.output and "feed" in wider.output
    assert "lacks" in deeper.output and "layers.2." in deeper.output
    assert "Traceback" not in wider.output + deeper.output
