"""The queue of this machine: order, requeueing, limits, cancelling, and a runner that dies. Jobs are short shell scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.exits import AGAIN
from launcher.jobs.folder import Folder, new_folder
from launcher.jobs.queue import LocalQueue
from tests.launcher.running import ROOT, Triaxis, assert_same_curve, last_step, minute
from tests.launcher.test_jobs_controller import folder_of


@pytest.fixture
def queue(tmp_path: Path, triaxis: Triaxis, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalQueue]:
    """An empty queue whose processes are ended with the test."""
    monkeypatch.setenv("TRIAXIS_QUEUE", str(tmp_path / "queue"))
    monkeypatch.setenv("TRIAXIS_TEST_MARK", triaxis.mark)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = LocalQueue(tmp_path / "queue")
    yield found
    triaxis.end()


def job(tmp_path: Path, name: str, script: str, **changes: object) -> Folder:
    """A submission whose script is not ours."""
    folder = folder_of(tmp_path / name, scheduler="local", **changes)
    folder.write(replace(folder.read(), name=name))
    folder.script.write_text(script)
    return folder


def states(queue: LocalQueue) -> dict[str, str]:
    return {job.name: job.state for job in queue.jobs()}


def until(true: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def test_jobs_run_in_order_and_the_runner_leaves(queue: LocalQueue, tmp_path: Path, triaxis: Triaxis) -> None:
    for name in "abc":
        queue.submit(job(tmp_path, name, f"echo {name} >> {tmp_path}/order; sleep 0.2").script, [])
    until(lambda: set(states(queue).values()) == {"COMPLETED"}, "the end of three jobs")
    assert (tmp_path / "order").read_text().split() == ["a", "b", "c"]
    triaxis.assert_nothing_runs()


def test_a_job_that_saved_runs_again_before_those_after_it(queue: LocalQueue, tmp_path: Path) -> None:
    again = f"echo a$TRIAXIS_RESTART >> {tmp_path}/order; [ $TRIAXIS_RESTART -eq 2 ] || exit {AGAIN}"
    queue.submit(job(tmp_path, "a", again).script, [])
    queue.submit(job(tmp_path, "b", f"echo b >> {tmp_path}/order; exit {AGAIN}", requeue=False).script, [])
    until(lambda: states(queue) == {"a": "COMPLETED", "b": "FAILED"}, "the end of both")
    assert (tmp_path / "order").read_text().split() == ["a0", "a1", "a2", "b"]


def test_a_time_limit_signals_and_then_ends(queue: LocalQueue, tmp_path: Path) -> None:
    script = f"trap 'echo told >> {tmp_path}/heard' USR2; trap 'echo ended >> {tmp_path}/heard; exit 1' TERM\n"
    script += "while true; do sleep 0.05; done"
    queue.submit(job(tmp_path, "a", script, seconds=2, signal_seconds=1).script, [])
    until(lambda: states(queue) == {"a": "TIMEOUT"}, "the time limit")
    assert (tmp_path / "heard").read_text().split() == ["told", "ended"]


def test_cancelling_ends_what_runs_and_takes_out_what_waits(queue: LocalQueue, tmp_path: Path) -> None:
    first = queue.submit(job(tmp_path, "a", f"touch {tmp_path}/runs; exec sleep 60").script, [])
    second = queue.submit(job(tmp_path, "b", f"touch {tmp_path}/never").script, [])
    until((tmp_path / "runs").exists, "the first job")
    assert queue.jobs()[0].seconds_left is None and queue.jobs()[1].reason == "in order"
    queue.cancel([first, second])
    until(lambda: states(queue) == {"a": "CANCELLED", "b": "CANCELLED"}, "both to be cancelled")
    assert not (tmp_path / "never").exists()


def test_what_a_dead_runner_left_runs_again(queue: LocalQueue, tmp_path: Path, triaxis: Triaxis) -> None:
    script = f"echo $TRIAXIS_RESTART >> {tmp_path}/runs; [ $TRIAXIS_RESTART -ge 1 ] || exec sleep 60"
    queue.submit(job(tmp_path, "a", script).script, [])
    until((tmp_path / "runs").exists, "the job")
    runner = next(pid for pid, line in triaxis.processes().items() if "launcher.jobs.runner" in line)
    os.kill(runner, signal.SIGKILL)
    triaxis.assert_nothing_runs()
    assert states(queue) == {"a": "RUNNING"}, "nobody was left to say otherwise"
    LocalQueue.open().jobs()  # whoever looks next starts another
    until(lambda: states(queue) == {"a": "COMPLETED"}, "the job's second start")
    assert (tmp_path / "runs").read_text().split() == ["0", "1"]


def test_two_runners_are_one(queue: LocalQueue, tmp_path: Path, triaxis: Triaxis) -> None:
    queue.submit(job(tmp_path, "a", f"echo a >> {tmp_path}/runs; sleep 1").script, [])
    done = subprocess.run(
        [sys.executable, "-m", "launcher.jobs.runner", str(queue.directory)], timeout=60, check=False, cwd=tmp_path
    )
    assert done.returncode == 0
    until(lambda: states(queue) == {"a": "COMPLETED"}, "the job")
    assert (tmp_path / "runs").read_text() == "a\n"


def test_a_real_run_is_submitted_cancelled_and_goes_on(triaxis: Triaxis, corpus: Path, straight: Path) -> None:
    """The commands as a person gives them, on one process: saved at the cancel, bitwise the straight run at its end."""
    from tests.launcher.conftest import straight_recipe

    environment = {"TRIAXIS_QUEUE": str(triaxis.directory / "queue")}
    run = triaxis.directory / "runs" / "run"

    def give(*arguments: str) -> str:
        return triaxis.start(*arguments, **environment).wait(300, code=0).output

    told = give("submit", *straight_recipe(corpus, "cluster=local"))
    assert "queued  run as job 1" in told and "this one, 1 ranks on cpu" in told
    until(lambda: last_step(run) >= 10, "step 10", 300)
    assert "job 1 saves and ends" in give("cancel", "run", "--wait")
    stopped = last_step(run)
    listed = give("jobs", "run")
    assert "cancelled, state is saved" in listed and f"{stopped}/120" in listed
    assert "no job of it waits or runs" in give("cancel", "run")
    give("submit", *straight_recipe(corpus, "cluster=local"))
    until(lambda: "finished" in give("jobs"), "the end", 300)
    assert f"resume: from runs/run/checkpoints/step_{stopped:09d}" in give("logs", "run")
    assert "attempt 2 of run, job 2: 1 ranks on" in give("logs", "run", "--job")
    assert_same_curve(run, straight)
    triaxis.assert_nothing_runs(30)


def test_submissions_are_numbered(tmp_path: Path) -> None:
    assert [new_folder(tmp_path / "run").path.name for _ in range(3)] == ["001", "002", "003"]


def test_what_the_queue_cannot_do_is_refused(triaxis: Triaxis, corpus: Path) -> None:
    overrides = minute(corpus, 10, "cluster=local", job__nodes=2)
    done = triaxis.run("submit", *overrides, code=1, TRIAXIS_QUEUE=str(triaxis.directory / "queue"))
    assert "job.nodes=2: has no effect with cluster.scheduler=local" in done.output
