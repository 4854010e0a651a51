"""Phases: a run goes from one to the next by itself, and goes on bitwise from anywhere around a border."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

from parallel.checkpoint.files import data_name
from tests.launcher.conftest import STEPS, straight_recipe
from tests.launcher.running import (
    BATCH,
    INTERRUPTED,
    Triaxis,
    assert_close_curve,
    assert_same_curve,
    checkpoint,
    committed,
    curve,
    flip_byte,
    in_parallel,
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


def test_a_run_goes_from_phase_to_phase(straight_phases: Path, straight: Path) -> None:
    found = curve(straight_phases)
    assert [line[1] for line in found] == ["short"] * FIRST + ["long"] * SECOND
    tokens = [line[2] for line in found]
    assert tokens[:FIRST] == [BATCH * (i + 1) for i in range(FIRST)]
    assert tokens[FIRST:] == [FIRST * BATCH + 2 * BATCH * (i + 1) for i in range(SECOND)]
    # the schedule spans the run: cosine from the peak to a tenth over the tokens of both phases
    rates = [line[5] for line in found]
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.1 * 3e-3) and rates[FIRST - 1] > 0.6 * 3e-3
    # the same text as the plain run of 16-token sequences has, to the border
    assert [line[-1] for line in found[:FIRST]] == [line[-1] for line in curve(straight)[:FIRST]]
    assert len({line[-1] for line in found}) == FIRST + SECOND, "a batch came twice"
    assert FIRST in committed(straight_phases), "the border is a checkpoint"
    assert FIRST in validations(straight_phases)
    assert found[-1][3] < found[FIRST][3] < found[0][3]


@pytest.mark.parametrize("step", [16, FIRST, 28])
def test_going_on_from_before_at_and_after_the_border(
    triaxis: Triaxis, corpus: Path, straight_phases: Path, step: int
) -> None:
    run = rewound(straight_phases, triaxis.directory / "runs" / "run", step)
    triaxis.run("train", *growing(corpus))
    assert last_start(run) == step
    assert_same_curve(run, straight_phases)


def test_signals_and_kills_around_the_border(triaxis: Triaxis, corpus: Path, straight_phases: Path) -> None:
    """SIGTERM at the last step of the first phase or a little later, then SIGKILL in the second phase."""
    run = triaxis.directory / "runs" / "run"
    started = triaxis.start("train", *growing(corpus))
    started.until_step(run, FIRST)
    started.process.send_signal(signal.SIGTERM)
    started.wait(60, code=INTERRUPTED)
    assert committed(run)[-1] >= FIRST
    started = triaxis.start("train", *growing(corpus, checkpoint__every_tokens=BATCH))
    started.until_step(run, FIRST + 10)
    started.kill()
    saved = committed(run)[-1]
    triaxis.run("train", *growing(corpus))
    assert last_start(run) in (saved, saved + 1)
    assert_same_curve(run, straight_phases)


def test_a_corrupt_checkpoint_throws_the_run_back_over_the_border(
    triaxis: Triaxis, corpus: Path, straight_phases: Path
) -> None:
    run = rewound(straight_phases, triaxis.directory / "runs" / "run", 28)
    for step in (28, FIRST):
        flip_byte(checkpoint(run, step) / data_name(0))
    done = triaxis.run("train", *growing(corpus))
    assert "step_000000028" in done.output and f"step_{FIRST:09d}" in done.output
    assert last_start(run) == 16
    assert_same_curve(run, straight_phases)


def test_one_phase_is_the_plain_run(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    recipe = straight_recipe(corpus, f"phases=[{{name: main, tokens: {STEPS * BATCH}}}]", train__tokens=7)
    triaxis.run("train", *recipe)
    assert_same_curve(triaxis.directory / "runs" / "run", straight)


def test_precision_and_schedule_may_change(triaxis: Triaxis, corpus: Path, straight_phases: Path) -> None:
    """float32 then bf16, each with a schedule of its own; going on within the second is bitwise."""
    second = (
        f"{{tokens: {16 * BATCH}, precision: {{name: bf16}}, schedule: {{name: linear, warmup_tokens: {4 * BATCH}}}}}"
    )
    recipe = minute(
        corpus, 1, f"phases=[{BORDER},{second}]", schedule__span="phase", checkpoint__every_tokens=8 * BATCH
    )
    triaxis.run("train", *recipe)
    run = triaxis.directory / "runs" / "run"
    found = curve(run)
    assert found[FIRST - 1][5] == pytest.approx(0.1 * 3e-3), "the first phase's schedule ends with it"
    warm = [line[5] for line in found[FIRST : FIRST + 4]]
    assert warm == pytest.approx([3e-3 * part for part in (0.25, 0.5, 0.75, 1.0)])
    assert found[-1][5] == pytest.approx(0.1 * 3e-3)
    assert found[-1][3] < found[FIRST][3] < found[0][3]
    again = rewound(run, triaxis.directory / "runs" / "again", 32)
    triaxis.run("train", *recipe, "run.name=again")
    assert last_start(again) == 32
    assert_same_curve(again, run)


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


def test_weights_of_another_run_begin_a_new_one(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    """With a learning rate of 0 the weights stay those of the other run, and so does its validation loss."""
    frozen = {"optimizer__learning_rate": 0, "run__init_from": straight}
    triaxis.run("train", *minute(corpus, 2, **frozen))
    run = triaxis.directory / "runs" / "run"
    assert validations(run)[2] == validations(straight)[STEPS]
    assert last_start(run) == 0
    assert [line[-1] for line in curve(run)] == [line[-1] for line in curve(straight)[:2]], "the text begins anew"


def test_everything_of_another_run_goes_on_with_it(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    """From a checkpoint in the middle, and a kill on the way: the curve that the other run had."""
    origin = checkpoint(straight, 60)
    recipe = straight_recipe(corpus, run__init_from=origin, run__init_what="everything", train__max_steps=100)
    triaxis.run("train", *recipe)
    run = triaxis.directory / "runs" / "run"
    assert last_start(run) == 60 and committed(run)[-1] == 100
    triaxis.run("train", *recipe, "train.max_steps=0")
    assert last_start(run) == 100, "its own checkpoint comes before init_from"
    assert curve(run) == curve(straight)[60:]
    assert records(run, "end")[-1]["outcome"] == "finished"


def test_two_runs_from_one(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    """Weights of one model do not fit another, and the message says which tensors."""
    wider = minute(corpus, 2, run__init_from=straight, run__name="wider", model__ffn_size=128)
    deeper = minute(corpus, 2, run__init_from=straight, run__name="deeper", model__layers=3)
    first, second = in_parallel(
        lambda: triaxis.start("train", *wider).wait(60, code=1),
        lambda: triaxis.start("train", *deeper).wait(60, code=1),
    )
    triaxis.assert_nothing_runs()
    assert "other shapes" in first.output and "feedforward" in first.output.lower().replace("_", "")
    assert "lacks" in second.output and "layers.2." in second.output
    assert "Traceback" not in first.output + second.output
