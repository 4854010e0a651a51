"""attempts.jsonl: one whole line an attempt, whatever was killed when; and what counts as progress."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.attempts import (
    FILE_NAME,
    OPEN_NAME,
    Attempt,
    begin_attempt,
    end_attempt,
    fruitless_in_a_row,
    read_attempts,
    running_attempt,
)
from launcher.exits import AGAIN, DONE, FAILED, NEVER


def made_step(run: Path, step: int) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"kind": "step", "time": time.time(), "step": step}) + "\n")


def test_an_attempt_runs_then_is_a_line(tmp_path: Path) -> None:
    begun = begin_attempt(tmp_path, 4, job="17", nodes=("a", "b"))
    assert running_attempt(tmp_path) == begun and not read_attempts(tmp_path)
    (tmp_path / "checkpoints" / "step_000000020").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_000000040.corrupt").mkdir()
    (tmp_path / "checkpoints" / "step_000000030.tmp-000001-ab-1").mkdir()
    made_step(tmp_path, 33)
    ended = end_attempt(tmp_path, begun, FAILED, "rank 1 failed first: out of memory")
    assert (ended.first_step, ended.last_step, ended.saved_step, ended.code) == (0, 33, 20, FAILED)
    assert running_attempt(tmp_path) is None and read_attempts(tmp_path) == [ended]
    line = json.loads((tmp_path / FILE_NAME).read_text())
    assert line["nodes"] == ["a", "b"] and line["job"] == "17" and line["world"] == 4
    following = begin_attempt(tmp_path, 4)
    assert (following.attempt, following.first_step) == (2, 20)
    assert end_attempt(tmp_path, following, FAILED, "at once").last_step == 20  # steps of the first are not its own


def test_an_attempt_that_nobody_ended_is_ended_by_the_next(tmp_path: Path) -> None:
    begin_attempt(tmp_path, 2)
    made_step(tmp_path, 3)
    assert begin_attempt(tmp_path, 2).attempt == 2
    (found,) = read_attempts(tmp_path)
    assert (found.attempt, found.last_step, found.code) == (1, 3, FAILED) and "nobody" in found.reason


def test_a_kill_between_the_line_and_the_note_leaves_one_line(tmp_path: Path) -> None:
    begun = begin_attempt(tmp_path, 1)
    note = (tmp_path / OPEN_NAME).read_text()
    end_attempt(tmp_path, begun, AGAIN, "stopped")
    (tmp_path / OPEN_NAME).write_text(note)
    begin_attempt(tmp_path, 1)
    assert [(a.attempt, a.code) for a in read_attempts(tmp_path)] == [(1, AGAIN)]


def test_an_attempt_that_was_taken_over_ends_no_other(tmp_path: Path) -> None:
    first = begin_attempt(tmp_path, 1)
    second = begin_attempt(tmp_path, 1)
    end_attempt(tmp_path, first, FAILED, "fenced off")
    assert running_attempt(tmp_path) == second
    assert [a.attempt for a in read_attempts(tmp_path)] == [1]


def test_a_torn_line_spoils_no_other(tmp_path: Path) -> None:
    end_attempt(tmp_path, begin_attempt(tmp_path, 1), AGAIN, "stopped")
    with open(tmp_path / FILE_NAME, "ab") as file:
        file.write(b'{"attempt": 2, "star')
    end_attempt(tmp_path, begin_attempt(tmp_path, 1), DONE, "finished")
    assert [a.code for a in read_attempts(tmp_path)] == [AGAIN, DONE]


@pytest.mark.parametrize(
    ("told", "count"),
    [
        ([], 0),
        ([(FAILED, 0, 0)], 1),
        ([(FAILED, 0, 10), (FAILED, 10, 10), (FAILED, 10, 10)], 2),
        ([(FAILED, 0, 0), (AGAIN, 0, 0)], 0),  # an interruption is no failure
        ([(FAILED, 0, 0), (FAILED, 0, 5)], 0),
    ],
)
def test_what_counts_as_a_crash_loop(told: list[tuple[int, int, int]], count: int) -> None:
    attempts = [
        Attempt(number, 0.0, 1.0, first, saved, saved, 1, code, "")
        for number, (code, first, saved) in enumerate(told, 1)
    ]
    assert fruitless_in_a_row(attempts) == count


def test_a_code_that_nobody_knows_is_a_failure(tmp_path: Path) -> None:
    assert end_attempt(tmp_path, begin_attempt(tmp_path, 1), 137, "killed").code == FAILED
    assert end_attempt(tmp_path, begin_attempt(tmp_path, 1), NEVER, "no corpus").code == NEVER


def test_reading_attempts_takes_no_torch() -> None:
    told = "import sys, launcher.attempts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == 0
