"""`life.restarts`: a run that fails goes on by itself, and ends as if nothing had happened; a crash loop is given up."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.attempts import Attempt, read_attempts, running_attempt
from launcher.exits import AGAIN, DONE, FAILED, NEVER
from launcher.life import LifeConfig, LifeError
from launcher.restarts import no_more, pause, run_attempts
from launcher.workers import WorkerError
from tests.launcher.conftest import STEPS, straight_recipe
from tests.launcher.running import Triaxis, assert_same_curve, records
from tests.launcher.test_errors import fault

# Through the real command

TWICE = """
    rate = loop.learning_rate
    def learning_rate(run, phase, schedule, tokens):
        if run.counters.step in (30, 65):
            import os, pathlib
            mark = pathlib.Path(os.environ["FAULT_MARK"] + str(run.counters.step))
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), 9)
        return rate(run, phase, schedule, tokens)
    loop.learning_rate = learning_rate
"""


def test_a_run_that_is_killed_twice_ends_as_one_that_was_not(
    triaxis: Triaxis, corpus: Path, straight: Path, tmp_path: Path
) -> None:
    told = fault(tmp_path / "fault", 0, TWICE) | {"FAULT_MARK": str(tmp_path / "killed_at_")}
    done = triaxis.run(
        "train", *straight_recipe(corpus, life__restarts=2, checkpoint__asynchronous=False), timeout=400, **told
    )
    run = tmp_path / "runs" / "run"
    assert_same_curve(run, straight)
    attempts = read_attempts(run)
    assert [(a.attempt, a.first_step, a.last_step, a.saved_step) for a in attempts] == [
        (1, 0, 30, 20),
        (2, 20, 65, 60),
        (3, 60, STEPS, STEPS),
    ]
    assert [a.code for a in attempts] == [FAILED, FAILED, DONE] and running_attempt(run) is None
    assert all("SIGKILL" in a.reason for a in attempts[:2])
    assert "again from step 20; restarts left after this one: 1" in done.output
    assert [record["start_step"] for record in records(run, "start")] == [0, 20, 60]


# The loop alone


def attempts_of(tmp_path: Path, life: LifeConfig, ends: list[int | WorkerError]) -> tuple[int, list[str]]:
    """What `run_attempts` makes of attempts that end so; a step is saved by each whose error says `saved`."""
    told: list[str] = []
    left = iter(ends)

    def start() -> int:
        end = next(left)
        if isinstance(end, WorkerError):
            if "saved" in str(end):
                (tmp_path / "checkpoints" / f"step_{len(told) + 1:09d}").mkdir(parents=True)
            raise end
        return end

    return run_attempts(life, tmp_path, 2, start, told.append), told


def test_a_crash_loop_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.restarts.time.sleep", lambda seconds: None)
    ends: list[int | WorkerError] = [WorkerError("saved, then lost"), *[WorkerError("lost")] * 9]
    with pytest.raises(WorkerError, match="2 attempts in a row made no progress") as caught:
        attempts_of(tmp_path, LifeConfig(restarts=9, fruitless=2), ends)
    assert "step 1" in str(caught.value)
    assert [attempt.code for attempt in read_attempts(tmp_path)] == [FAILED] * 3


@pytest.mark.parametrize(("code", "told"), [(NEVER, "would end alike"), (AGAIN, "would end alike")])
def test_what_no_attempt_cures_is_not_tried_again(tmp_path: Path, code: int, told: str) -> None:
    with pytest.raises(WorkerError, match=told):
        attempts_of(tmp_path, LifeConfig(restarts=9), [WorkerError("no such shard", code), DONE])
    assert [attempt.code for attempt in read_attempts(tmp_path)] == [code]


def test_the_budget_of_restarts_is_kept(tmp_path: Path) -> None:
    ends: list[int | WorkerError] = [WorkerError("saved 1"), WorkerError("saved 2"), WorkerError("saved 3"), DONE]
    with pytest.raises(WorkerError, match=r"life.restarts=2 are used up"):
        attempts_of(tmp_path, LifeConfig(restarts=2), ends)


def test_without_a_budget_the_error_stands_alone(tmp_path: Path) -> None:
    with pytest.raises(WorkerError) as caught:
        attempts_of(tmp_path, LifeConfig(), [WorkerError("lost"), DONE])
    assert str(caught.value) == "lost"


def test_an_interruption_is_handed_on(tmp_path: Path) -> None:
    assert attempts_of(tmp_path, LifeConfig(restarts=1), [WorkerError("saved"), AGAIN])[0] == AGAIN
    assert [attempt.reason for attempt in read_attempts(tmp_path)] == ["saved", "interrupted, state is saved"]


def test_a_launcher_that_is_ended_leaves_a_line(tmp_path: Path) -> None:
    def start() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_attempts(LifeConfig(), tmp_path, 1, start, print)
    assert "KeyboardInterrupt" in read_attempts(tmp_path)[0].reason


def test_pauses_grow_only_without_progress() -> None:
    def failed(saved: int) -> Attempt:
        return Attempt(1, 0.0, 1.0, 0, saved, saved, 1, FAILED, "")

    assert [pause([failed(5)]), pause([failed(0)]), pause([failed(0)] * 3)] == [0.0, 1.0, 4.0]
    assert no_more(LifeConfig(restarts=9), [failed(0)] * 2) == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"restarts": -1}, "life.restarts=-1"),
        ({"fruitless": 5}, "no effect without life.restarts"),
        ({"hang_seconds": 9.0, "watchdog": False}, "no effect without life.watchdog=true"),
        ({"health_seconds": 9.0, "health": False}, "no effect without life.health=true"),
        ({"health_seconds": 0.0}, "must be above 0"),
    ],
)
def test_a_life_that_cannot_be(options: dict, told: str) -> None:
    with pytest.raises(LifeError, match=told):
        LifeConfig(**options)
