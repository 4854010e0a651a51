"""The end of a job: state is saved before it, whether or not anybody sends a signal, and on all ranks at one step."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest

from launcher.attempts import begin_attempt
from launcher.endtime import FILE_NAME, EndTime, tell_end
from tests.launcher.running import INTERRUPTED, Together, Triaxis, committed, last_step, minute, records


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def until_told(triaxis: Triaxis, recipe: list[str], **environment: str) -> tuple[str, Path]:
    """A run that would take minutes, told once that its job ends now."""
    run = triaxis.directory / "runs" / "run"
    started = triaxis.start("train", *recipe, **environment)
    if not environment:
        started.until_step(run, 5, timeout=300)
        tell_end(run, time.time() + 1.0)
    done = started.wait(300, code=INTERRUPTED)
    triaxis.assert_nothing_runs()
    return done.output, run


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path) -> Together:
    two = minute(corpus, 40_000, parallel__data=2)
    together.add("told", lambda triaxis: until_told(triaxis, two))
    # a job of which too little is left from the start: it still makes the one step that it can
    short = {"SLURM_JOB_END_TIME": f"{time.time() - 1.0:.0f}"}
    together.add("slurm", lambda triaxis: until_told(triaxis, minute(corpus, 40_000), **short))
    return together


@pytest.mark.parametrize("name", ["told", "slurm"])
def test_a_run_saves_and_stops_before_its_job_ends(ran: Together, name: str) -> None:
    output, run = ran[name]
    assert "the same command goes on from here" in output and "deadline: the job ends in" in output
    assert committed(run)[-1] == last_step(run) >= 1
    assert records(run, "end")[-1]["outcome"] == "interrupted"


def test_what_was_told_to_one_attempt_is_forgotten_by_the_next(tmp_path: Path) -> None:
    tell_end(tmp_path, time.time() + 5.0)
    begin_attempt(tmp_path, 1)
    assert not (tmp_path / FILE_NAME).exists()
    tell_end(tmp_path, time.time() - 5.0)  # where nobody called begin_attempt, as under torchrun
    assert EndTime(tmp_path, 60.0, {}).left() == math.inf


def test_the_nearest_of_all_that_is_known_counts(tmp_path: Path) -> None:
    clock = Clock()
    variables = {"SLURM_JOB_END_TIME": "2000", "TRIAXIS_END_TIME": "1900.5"}
    end = EndTime(tmp_path, 60.0, variables, clock)
    assert end.left() == 900.5
    tell_end(tmp_path, 1500.0)
    assert end.left() == 900.5  # it has just looked
    clock.time = 1001.5
    assert end.left() == pytest.approx(498.5)
    assert EndTime(tmp_path / "elsewhere", 60.0, {"SLURM_JOB_END_TIME": "UNLIMITED"}, clock).left() == math.inf


def test_what_lies_ahead_and_the_margin_are_kept_free(tmp_path: Path) -> None:
    clock = Clock()
    end = EndTime(tmp_path, 60.0, {"SLURM_JOB_END_TIME": "2000"}, clock)
    clock.time = 1900.0
    assert not end.near(30.0) and end.near(41.0)
    assert not EndTime(tmp_path, 60.0, {}, clock).near(1e9)


def test_a_short_job_keeps_a_quarter_at_most(tmp_path: Path) -> None:
    clock = Clock()
    end = EndTime(tmp_path, 60.0, {"SLURM_JOB_END_TIME": "1080"}, clock)
    assert not end.near(59.0) and end.near(61.0)
