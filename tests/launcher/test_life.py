"""A run's life through the real command: stopped, killed and damaged at any moment, it ends where the straight run ends."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from parallel.checkpoint.files import data_name
from tests.launcher.conftest import STEPS, straight_recipe
from tests.launcher.running import (
    BATCH,
    INTERRUPTED,
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
    last_step,
    minute,
    records,
    rewound,
    validations,
)

STEPS_OF_TWO = 40  # of two ranks' straight run
ENDLESS = 100_000  # steps: more than any machine makes before it is told to stop
OFTEN = {"checkpoint__every_tokens": BATCH, "checkpoint__keep_last": 2}


# What needs no test's own eyes runs beside one another


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path, straight: Path) -> Together:
    """Runs of one process that were stopped, damaged or had ended, each with its run directory as result."""
    together.add("signals", lambda triaxis: interrupt_twice(triaxis, straight_recipe(corpus)))
    together.add("early signal", lambda triaxis: signal_early(triaxis, minute(corpus, ENDLESS), 0.3))
    together.add("finished", lambda triaxis: run_again(triaxis, corpus, straight))
    together.add("strict", lambda triaxis: damaged(triaxis, corpus, straight, fall_back=False, code=1))
    together.add("lenient", lambda triaxis: damaged(triaxis, corpus, straight, fall_back=True, code=0))
    return together


# Signals


def interrupt_twice(triaxis: Triaxis, recipe: list[str]) -> Path:
    """SIGTERM, the same command again, SIGINT, and once more to the end."""
    run = triaxis.directory / "runs" / "run"
    for number, step in ((signal.SIGTERM, 8), (signal.SIGINT, 50)):
        started = triaxis.start("train", *recipe)
        started.until_step(run, step)
        started.process.send_signal(number)
        done = started.wait(120, code=INTERRUPTED)
        triaxis.assert_nothing_runs()
        assert "the same command goes on from here" in done.output
        assert step <= committed(run)[-1] == last_step(run) < STEPS
        assert records(run, "end")[-1]["outcome"] == "interrupted"
    stopped_at = last_step(run)
    triaxis.run("train", *recipe)
    assert last_start(run) == stopped_at
    return run


def test_a_signal_saves_and_the_same_command_goes_on(ran: Together, straight: Path) -> None:
    run = ran["signals"]
    assert_same_curve(run, straight)
    assert [record["outcome"] for record in records(run, "end")] == ["interrupted", "interrupted", "finished"]


@pytest.mark.slow
def test_a_signal_saves_where_writing_is_not_asynchronous(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    run = interrupt_twice(triaxis, straight_recipe(corpus, checkpoint__asynchronous=False))
    assert_same_curve(run, straight)


def signal_early(triaxis: Triaxis, recipe: list[str], after: float) -> Done:
    """SIGTERM so many seconds after the first process has started that is not the command's own."""
    started = triaxis.start("train", *recipe)
    started.until(lambda: len(triaxis.processes()) > 1, "a rank, or the process that ranks are forks of")
    time.sleep(after)
    started.process.send_signal(signal.SIGTERM)
    done = started.wait(120, code=INTERRUPTED)
    triaxis.assert_nothing_runs()
    return done


def test_a_signal_while_ranks_import_is_an_interruption_too(ran: Together, triaxis: Triaxis, corpus: Path) -> None:
    """There is nothing to save, and nothing has failed."""
    triaxis.cold = True  # forks have imported already
    for done in (ran["early signal"], signal_early(triaxis, minute(corpus, ENDLESS, parallel__data=2), 0.0)):
        assert "Traceback" not in done.output and "failed" not in done.output


def run_again(triaxis: Triaxis, corpus: Path, straight: Path) -> Path:
    """The command of a run that has finished."""
    run = Path(shutil.copytree(straight, triaxis.directory / "runs" / "run"))
    triaxis.run("train", *straight_recipe(corpus))
    return run


def test_a_finished_run_is_left_alone_by_the_same_command(ran: Together, straight: Path) -> None:
    run = ran["finished"]
    assert committed(run) == committed(straight) and last_start(run) == STEPS
    assert_same_curve(run, straight)


# SIGKILL


def harass(triaxis: Triaxis, recipe: list[str], run: Path, steps: int, kills: int, draw: random.Random) -> int:
    """SIGKILL the launcher so many times, then let the run end; returns how many kills left a half-written checkpoint.

    Half of the moments lie within a second of the start, the others within the steps that this life may make. steps: of
    the whole run, shared out among the lives so that each has something left to be killed in, however fast the machine.
    """
    half_written = 0
    for left in range(kills, 0, -1):
        saved, starts = (committed(run) or [0])[-1], len(records(run, "start"))
        share = (steps - saved) // (left + 1)
        last, end = saved + share, float("inf")
        if draw.random() < 0.5:
            end = time.monotonic() + draw.uniform(0, 1)
        else:
            last = saved + draw.randint(1, share)
        started = triaxis.start("train", *recipe)
        started.until(lambda last=last, end=end: time.monotonic() > end or last_step(run) >= last, "its moment")
        time.sleep(draw.uniform(0, 0.03))  # anywhere within a step
        started.kill()
        half_written += any((run / "checkpoints").glob("step_*.tmp-*"))
        if len(records(run, "start")) > starts:
            assert_nothing_lost(run, saved)
    saved = (committed(run) or [0])[-1]
    assert saved < steps, "ended before it was killed"
    triaxis.run("train", *recipe)
    assert_nothing_lost(run, saved)
    return half_written


def assert_nothing_lost(run: Path, saved: int) -> None:
    """The newest process began where the newest checkpoint stood, or where one did that was whole but for its name."""
    assert last_start(run) - saved in (0, 1), (last_start(run), saved)


def test_sigkill_at_random_moments(together: Together, corpus: Path, straight: Path, straight_two: Path) -> None:
    def harassed(triaxis: Triaxis, recipe: list[str], steps: int, kills: int, seed: int) -> Path:
        run = triaxis.directory / "runs" / "run"
        harass(triaxis, recipe, run, steps, kills, random.Random(seed))
        return run

    one, two = straight_recipe(corpus, **OFTEN), two_recipe(corpus, **OFTEN)
    together.add("two ranks killed", lambda triaxis: harassed(triaxis, two, STEPS_OF_TWO, 2, 6))
    together.add("one rank killed", lambda triaxis: harassed(triaxis, one, STEPS, 4, 5))
    assert_same_curve(together["one rank killed"], straight)
    assert_same_curve(together["two ranks killed"], straight_two)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("world", "kills"), [(1, 30), (2, 20)])
def test_sigkill_at_fifty_random_moments(triaxis: Triaxis, corpus: Path, world: int, kills: int) -> None:
    steps = {1: 1500, 2: 600}[world]
    recipe = minute(corpus, steps, parallel__data=world, train__validate_every_tokens=50 * BATCH, **OFTEN)
    triaxis.run("train", *recipe, "run.name=straight", "checkpoint.every_tokens=0")
    runs = triaxis.directory / "runs"
    half_written = harass(triaxis, recipe, runs / "run", steps, kills, random.Random(world))
    assert half_written >= kills // 10, half_written
    assert_same_curve(runs / "run", runs / "straight")


# Two processes


def two_recipe(corpus: Path, *more: str, **options: object) -> list[str]:
    every = {"checkpoint__every_tokens": 10 * BATCH, "train__validate_every_tokens": 10 * BATCH}
    return minute(corpus, STEPS_OF_TWO, *more, **{"parallel__data": 2, **every, **options})


@pytest.fixture(scope="session")
def straight_two(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The run directory of two data ranks that nobody disturbed."""
    triaxis = Triaxis(tmp_path_factory.mktemp("straight_two"), cold=True)
    try:
        triaxis.run("train", *two_recipe(corpus))
    finally:
        triaxis.end()
    return triaxis.directory / "runs" / "run"


def test_torchrun_gives_the_same_curve(triaxis: Triaxis, corpus: Path, straight_two: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    started = triaxis.start("-m", "launcher.train", *two_recipe(corpus), program=program)
    started.wait(code=0)
    triaxis.assert_nothing_runs()
    assert_same_curve(triaxis.directory / "runs" / "run", straight_two)


# Damage


def damaged(triaxis: Triaxis, corpus: Path, straight: Path, *, fall_back: bool, code: int) -> tuple[Path, str]:
    """A run whose newest checkpoint has one altered bit; returns its directory and what the command said."""
    run = rewound(straight, triaxis.directory / "runs" / "run", 60)
    flip_byte(checkpoint(run, 60) / data_name(0))
    done = triaxis.run("train", *straight_recipe(corpus, checkpoint__fall_back=fall_back), code=code)
    return run, done.output


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(ran: Together, straight: Path) -> None:
    run, text = ran["lenient"]
    assert "step_000000060" in text and "altered" in text and "using the checkpoint before it" in text
    assert (run / "checkpoints" / "step_000000060.corrupt").exists()
    assert last_start(run) == 40
    assert_same_curve(run, straight)


def test_a_corrupt_checkpoint_is_refused_where_the_recipe_says_so(ran: Together) -> None:
    run, text = ran["strict"]
    message = text[text.index("triaxis: ") :]
    assert "step_000000060" in message and "altered" in message and "checkpoint.fall_back" in message
    assert message.count("\n") == 1 and "Traceback" not in text
    assert checkpoint(run, 60).exists() and len(records(run, "start")) == 1


def test_what_one_rank_finds_corrupt_none_uses(triaxis: Triaxis, corpus: Path, straight_two: Path) -> None:
    run = rewound(straight_two, triaxis.directory / "runs" / "run", 20)
    flip_byte(checkpoint(run, 20) / data_name(1))
    done = triaxis.run("train", *two_recipe(corpus))
    assert "step_000000020" in done.output and "using the checkpoint before it" in done.output
    assert any("step_000000010" in record["text"] for record in records(run, "event") if record["event"] == "resume")
    assert_same_curve(run, straight_two)


# Eight processes


def cube_recipe(corpus: Path, *more: str, **options: object) -> list[str]:
    every = {"checkpoint__every_tokens": 2 * BATCH, "train__validate_every_tokens": 2 * BATCH}
    return minute(corpus, 7, *more, **{**every, **options})


@pytest.fixture(scope="session")
def straight_cube(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The run directory of 2 x 2 x 2 processes that nobody disturbed until the last commit; then SIGKILL."""
    triaxis = Triaxis(tmp_path_factory.mktemp("straight_cube"))
    run = triaxis.directory / "runs" / "run"
    try:
        started = triaxis.start("train", "parallel=3d", *cube_recipe(corpus))
        started.until(lambda: 7 in committed(run), "the last commit")
        started.kill()
    finally:
        triaxis.end()
    assert len(curve(run)) == 7
    return run


def test_eight_processes_go_on_after_a_sigkill_bitwise(triaxis: Triaxis, corpus: Path, straight_cube: Path) -> None:
    run = rewound(straight_cube, triaxis.directory / "runs" / "run", 4)
    triaxis.run("train", "parallel=3d", *cube_recipe(corpus))
    assert last_start(run) == 4
    assert_same_curve(run, straight_cube)


def test_another_layout_goes_on_to_rounding(triaxis: Triaxis, corpus: Path, straight_cube: Path) -> None:
    """2 x 2 x 2, then data 4, then pipeline 2."""
    run = rewound(straight_cube, triaxis.directory / "runs" / "run", 4)
    done = triaxis.run("train", *cube_recipe(corpus, parallel__data=4, train__max_steps=6))
    assert "parallel.tensor: 2 -> 1" in done.output
    triaxis.run("train", *cube_recipe(corpus, parallel__pipeline=2))
    assert [record["world_size"] for record in records(run, "start")] == [8, 4, 2]
    assert curve(run)[:4] == curve(straight_cube)[:4]
    assert_close_curve(run, straight_cube)
    for step, (loss, bits) in validations(straight_cube).items():
        assert validations(run)[step] == pytest.approx((loss, bits), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_tiny_3d_200_steps_are_80_and_120(triaxis: Triaxis, tmp_path: Path) -> None:
    """The issue's number: 200 steps of the published recipe straight, and 80 + 120 after a SIGKILL, bitwise."""
    tokens = 4096
    recipe = ["experiment=tiny_3d", "tracker=none", "corpus.directory=corpus", f"train.tokens={200 * tokens}"]
    recipe += [f"train.batch_tokens={tokens}", f"checkpoint.every_tokens={80 * tokens}", f"run.dir={tmp_path / 'runs'}"]
    straight, run = (tmp_path / "runs" / name for name in ("straight", "run"))
    started = triaxis.start("train", *recipe, "run.name=run")
    started.until(lambda: committed(run), "step 80", timeout=3000)
    started.kill()
    assert committed(run) == [80]
    triaxis.run("train", *recipe, "run.name=run", timeout=3000)
    assert last_start(run) == 80
    triaxis.run("train", *recipe, "run.name=straight", timeout=3000)
    assert len(curve(run)) == 200
    assert_same_curve(run, straight)
