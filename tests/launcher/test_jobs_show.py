"""`triaxis jobs`, `logs` and `cancel` over the files of a run and a SLURM that is a stand-in."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.attempts import begin_attempt, end_attempt
from launcher.cli import main
from launcher.exits import AGAIN, DONE, FAILED, NEVER
from launcher.help import completions
from launcher.jobs.find import find_run
from launcher.jobs.folder import Folder
from launcher.jobs.show import attempts_table, row_of, state_of
from tests.launcher.test_jobs_controller import folder_of


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with one run that was submitted as job 7; `listed` is what squeue says."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"squeue": f"cat {tmp_path}/listed", "scancel": f'echo "$*" >> {tmp_path}/cancelled'}.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRIAXIS_QUEUE", str(tmp_path / "queue"))
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path / "runs")
    folder.script.write_text("")
    folder.add_link("7")
    (tmp_path / "listed").write_text("")
    return tmp_path


def folder_in(place: Path) -> Folder:
    return Folder(place / "runs" / "run" / "jobs" / "001")


def listed(place: Path, *states: str, job: str = "7") -> None:
    """Let squeue list the run's jobs, and one that is none of ours."""
    script = folder_in(place).script
    lines = [f"{job}|{state}|Priority|n[0-1]|1-00:00:10|run|{script}" for state in states]
    (place / "listed").write_text("\n".join([*lines, "9|RUNNING|None|n5|UNLIMITED|bash|(null)", ""]))


def step(place: Path, number: int, total: int = 100) -> None:
    record = {
        "kind": "step",
        "step": number,
        "tokens": number * 10,
        "loss": 2.5,
        "tokens_per_second": 50.0,
        "time": time.time(),
    }
    with open(place / "runs" / "run" / "metrics.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


def attempt(place: Path, code: int, reason: str) -> None:
    run = place / "runs" / "run"
    end_attempt(run, begin_attempt(run, 2, job="7", nodes=("n0", "n1")), code, reason)


def test_a_running_job_shows_where_it_is(place: Path) -> None:
    attempt(place, AGAIN, "preempted, state is saved")
    listed(place, "RUNNING")
    step(place, 40)
    with open(place / "runs" / "run" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')  # being written
    row = [str(cell) for cell in row_of(find_run("run"))]
    assert row[:5] == ["run", "7", "running", "40/100", "2.5000"]
    assert row[5:] == ["50", "12 s", "1 d 0 h", "1", "before: preempted, state is saved"]


@pytest.mark.parametrize(
    ("states", "stopped", "state", "why"),
    [
        (["PENDING"], None, "waiting", "Priority; before: node n1 failed"),
        (["RUNNING", "PENDING"], None, "running", "before: node n1 failed"),
        (["COMPLETED"], (DONE, "finished"), "finished", ""),
        (["RUNNING"], (FAILED, "cancelled"), "ending", ""),
        (["FAILED"], (FAILED, "cancelled"), "cancelled", "node n1 failed"),
        (["FAILED"], (NEVER, "model.layers=0"), "failed", "model.layers=0"),
        (["TIMEOUT"], None, "ended", "job timeout; node n1 failed"),
        ([], None, "ended", "job gone from the queue; node n1 failed"),
    ],
)
def test_every_state_has_its_word(place: Path, states: list[str], stopped: tuple | None, state: str, why: str) -> None:
    attempt(place, FAILED, "node n1 failed")
    listed(place, *states)
    if stopped:
        folder_in(place).stop(*stopped)
    assert state_of(find_run("run")) == (state, why)


def test_attempts_are_listed_with_their_reasons(place: Path) -> None:
    attempt(place, FAILED, "node n1 failed (SLURM says DOWN)")
    begin_attempt(place / "runs" / "run", 2, job="7", nodes=("n0", "n2"))
    listed(place, "RUNNING")
    table = attempts_table(find_run("7"))  # by the id of its job
    assert [list(column.cells) for column in table.columns][-1] == ["node n1 failed (SLURM says DOWN)", "runs"]


def test_the_commands_themselves(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed(place, "RUNNING", "PENDING")
    assert main(["jobs"]) == 0 and "running" in capsys.readouterr().out
    folder_in(place).output.write_text("controller\n")
    (place / "runs" / "run" / "logs").mkdir()
    for rank in (0, 1):
        (place / "runs" / "run" / "logs" / f"rank_{rank:05d}.log").write_text(f"rank {rank}\n")
    assert main(["logs", "run"]) == 0 and capsys.readouterr().out == "controller\nrank 0\n"
    assert main(["logs", "run", "--rank", "1"]) == 0 and capsys.readouterr().out == "controller\nrank 1\n"
    assert main(["logs", "run", "--job"]) == 0 and capsys.readouterr().out == "controller\n"
    assert main(["logs", "run", "--rank", "2"]) == 1 and "the run has ranks 0 to 1" in capsys.readouterr().err
    assert (
        main(["logs", "ran"]) == 1
        and "ran: no run of this name was submitted from here; there are: run" in capsys.readouterr().err
    )
    assert completions("triaxis logs r") == ["run"]


def test_what_others_say_is_no_markup(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors of collectives begin with a path in brackets, which the table took for a tag, and fell over."""
    said = "RuntimeError: [/src/gloo/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4 [bold]"
    attempt(place, FAILED, said)
    listed(place, "RUNNING")
    assert main(["jobs", "run"]) == 0
    assert capsys.readouterr().out.count(said) == 2  # of the run, and of its attempt


def test_following_ends_with_the_job(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_in(place).output.write_text("controller\n")
    listed(place, "COMPLETED")
    assert main(["logs", "run", "-f"]) == 0 and capsys.readouterr().out == "controller\n"


@pytest.mark.parametrize(("flags", "asked"), [([], ["7", "--signal=USR2 7"]), (["--now"], ["7 7"])])
def test_cancelling_lets_ranks_save_unless_it_hurries(place: Path, flags: list[str], asked: list[str]) -> None:
    listed(place, "RUNNING", "PENDING")
    assert main(["cancel", "run", *flags]) == 0
    assert (place / "cancelled").read_text().splitlines() == asked
    assert folder_in(place).stopped == {"code": FAILED, "reason": "cancelled"}, (
        "so that nothing goes back into the queue"
    )


def test_a_slurm_that_does_not_answer_matters_to_its_own_runs_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "bin" / "squeue").write_text("#!/bin/bash\necho 'squeue: error: no controller' >&2; exit 1\n")
    assert main(["jobs"]) == 1 and "no controller" in capsys.readouterr().err
    folder_in(place).stop(DONE, "finished")
    assert main(["jobs"]) == 0 and "finished" in capsys.readouterr().out


def test_a_job_needs_a_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "experiment=tiny", "job.nodes=2"]) == 1
    assert "job.nodes=2: has no effect on a run that starts here and now" in capsys.readouterr().err
