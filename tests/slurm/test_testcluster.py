"""Real training jobs on a real SLURM: two ranks on two nodes, stopped in every way that a cluster has, end where an
undisturbed run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.attempts import Attempt, read_attempts
from launcher.exits import AGAIN, DONE, FAILED
from launcher.jobs.attempt import TOLD
from launcher.jobs.folder import folders
from launcher.jobs.scheduler import ENDED
from tests.launcher.running import Together, Triaxis, curve, last_step, minute, minute_sweep, rank_processes

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

STEPS, EVERY = 150, 10  # steps of a run, and between checkpoints
BUDGET = 40 * STEPS  # steps of the budget that schedules keep to: more than a run makes before it can be cancelled
STEP = 512  # tokens; a step takes some 50 ms, so that a run can be stopped on its way
FEW = 6  # steps of a run that is stopped by its time limit
PATIENCE = 900.0  # seconds for one run, on a machine that is busy


def recipe(corpus: Path, *nodes: str, **options: object) -> list[str]:
    """The run of all tests: a data axis of two, one rank a node."""
    settings = {
        "parallel__data": 2,
        "data__span_tokens": 64,
        "model__hidden_size": 96,
        "model__layers": 4,
        "model__ffn_size": 256,
        "model__max_sequence": 64,
        "train__sequence_length": 64,
        "train__batch_tokens": STEP,
        "train__tokens": BUDGET * STEP,
        "train__max_steps": STEPS,
        "train__micro_batch": 4,
        "checkpoint__every_tokens": EVERY * STEP,
        "job__time": "20",
        "job__signal_seconds": 30,
        **({"job__nodelist": f"[{','.join(nodes)}]"} if nodes else {}),
    }
    return minute(corpus, STEPS, "cluster=testcluster", "cluster.nodes=8", **{**settings, **options})


def tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def until(true: Callable[[], object], what: str, triaxis: Triaxis) -> None:
    """Wait for something that a job does."""
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            told = "\n".join(path.read_text(errors="replace")[-3000:] for path in triaxis.directory.rglob("*.log"))
            raise AssertionError(f"{PATIENCE:.0f} s passed before {what}:\n{tool('squeue', '-t', 'all')}\n{told}")
        time.sleep(0.1)


def submitted(triaxis: Triaxis, *arguments: str) -> Path:
    """Queue a run; returns its directory."""
    done = triaxis.start("submit", *arguments).wait(300, code=0)
    assert "queued" in done.output
    return triaxis.directory / "runs" / "run"


def states(*jobs: str) -> list[str]:
    """What SLURM says of jobs, a word each; it folds what is left of a cancelled array into one."""
    return tool("squeue", "-h", "-r", "-t", "all", "-o", "%T", "-j", ",".join(jobs)).split()


def over(triaxis: Triaxis, *jobs: str) -> None:
    """Wait until SLURM has nothing more to do for jobs, and no process is left."""
    until(lambda: set(states(*jobs)) <= set(ENDED), "the end of its jobs", triaxis)
    triaxis.assert_nothing_runs(30)


def ended(triaxis: Triaxis, run: Path) -> Path:
    """Wait for the end of a run's jobs."""
    folder = folders(run)[-1]
    until(lambda: folder.stopped is not None, "the word that it is over", triaxis)
    over(triaxis, *folder.links)
    return run


def reach(triaxis: Triaxis, run: Path, step: int) -> None:
    until(lambda: last_step(run) >= step, f"step {step}", triaxis)


def undisturbed(triaxis: Triaxis, corpus: Path) -> Path:
    return ended(triaxis, submitted(triaxis, *recipe(corpus, "n2", "n3")))


@contextlib.contextmanager
def held(triaxis: Triaxis, run: Path, step: int) -> Iterator[None]:
    """The ranks stand still from a step on until the job's controller was told to stop, so that no machine is too fast for what
    is done here."""
    told, end = folders(run)[-1].path / TOLD, time.monotonic() + PATIENCE
    while last_step(run) < step and not told.exists() and time.monotonic() < end:
        time.sleep(0.005)
    ranks = rank_processes(triaxis).values()
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        until(lambda: told.exists() or not rank_processes(triaxis), "the job knew of it", triaxis)
    finally:
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def time_limit(triaxis: Triaxis, corpus: Path, **options: object) -> Path:
    """Ranks are to save from 10 s after a job's start on, 110 s before its limit of two minutes: the first job is held at
    its first steps until they are told; a later one makes one step where it starts too slowly to make all that are left."""
    limits = {"job__time": "2", "job__signal_seconds": 110, "job__restarts": FEW + 2, "train__max_steps": FEW}
    run = submitted(triaxis, *recipe(corpus, "n2", "n3", **limits, **options))
    with held(triaxis, run, 1):
        pass
    return ended(triaxis, run)


def preempted(triaxis: Triaxis, corpus: Path, partition: str, *nodes: str) -> Path:
    """A job of a better partition takes both nodes."""
    run = submitted(triaxis, *recipe(corpus, *nodes, cluster__partition=partition))
    with held(triaxis, run, 2 * EVERY):
        tool(
            "sbatch", "-p", "high", "-w", ",".join(nodes), "-N2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
        )
    return ended(triaxis, run)


def killed(node: str, slurm: Path, triaxis: Triaxis) -> None:
    """A node without power: its slurmd is gone, and all that ran there."""
    os.kill(int((slurm / "run" / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    for pid in triaxis.processes():
        with contextlib.suppress(OSError):
            if f"SLURMD_NODENAME={node}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)


def node_failure(triaxis: Triaxis, corpus: Path, slurm: Path) -> Path:
    """The job may go to n2 and n3 too."""
    run = submitted(triaxis, *recipe(corpus, job__exclude="[n4,n5,n6,n7]"))
    reach(triaxis, run, 2 * EVERY)
    node = tool("squeue", "-h", "-o", "%N", "-j", folders(run)[-1].links[0]).strip()
    last = tool("scontrol", "show", "hostnames", node).split()[-1]
    killed(last, slurm, triaxis)
    return ended(triaxis, run)


def crash_loop(triaxis: Triaxis, corpus: Path) -> Path:
    """Ranks look for a network that is not there."""
    wrong = {"cluster__environment__GLOO_SOCKET_IFNAME": "nowhere0", "job__restarts": 2}
    return ended(triaxis, submitted(triaxis, *recipe(corpus, "n2", "n3", **wrong)))


def cancelled(triaxis: Triaxis, corpus: Path) -> Path:
    """Its ranks are not held: SLURM tells them, and not the controller. They have enough to do."""
    run = submitted(triaxis, *recipe(corpus, "n2", "n3", train__max_steps=0))
    reach(triaxis, run, EVERY)
    assert "saves and ends" in triaxis.start("cancel", "run").wait(120, code=0).output
    return ended(triaxis, run)


def swept(triaxis: Triaxis, corpus: Path) -> Path:
    """Four runs by an array of two tasks, which share a table."""
    line = minute_sweep(corpus, 4, "sweep.axes.seed=[1,2,3,4]")
    done = triaxis.start("sweep", *line, "--slurm=2", "--sbatch=--partition=main").wait(300, code=0)
    assert "array" in done.output
    over(triaxis, done.output.split("array ")[1].split()[0])
    return triaxis.directory / "sweeps" / "s"


@pytest.fixture(scope="module")
def runs(slurm: Path, corpus: Path, together: Together) -> Together:
    """Every run of this module, two at a time; the longest first."""
    chain = {"job__chain": FEW + 2}
    together.add("node failure", lambda triaxis: node_failure(triaxis, corpus, slurm))
    together.add("grace", lambda triaxis: preempted(triaxis, corpus, "graced", "n4", "n5"))
    together.add("no grace", lambda triaxis: preempted(triaxis, corpus, "main", "n6", "n7"))
    together.add("undisturbed", lambda triaxis: undisturbed(triaxis, corpus))
    together.add("time limit", lambda triaxis: time_limit(triaxis, corpus))
    together.add("chain", lambda triaxis: time_limit(triaxis, corpus, **chain))
    together.add("array", lambda triaxis: time_limit(triaxis, corpus, **chain, job__chain_as="array"))
    together.add("crash loop", lambda triaxis: crash_loop(triaxis, corpus))
    together.add("cancel", lambda triaxis: cancelled(triaxis, corpus))
    together.add("sweep", lambda triaxis: swept(triaxis, corpus))
    return together


def told(run: Path) -> list[tuple[int | None, str]]:
    return [(attempt.code, attempt.reason) for attempt in read_attempts(run)]


def assert_same(run: Path, straight: Path, steps: int = STEPS) -> None:
    """Bitwise the steps of the undisturbed run, as far as both go."""
    assert curve(run)[:STEPS] == curve(straight)[:steps]


def test_a_job_trains_on_two_nodes(runs: Together) -> None:
    run = runs["undisturbed"]
    assert told(run) == [(DONE, "finished")] and len(curve(run)) == STEPS
    attempt: Attempt = read_attempts(run)[0]
    assert (attempt.nodes, attempt.world, attempt.first_step, attempt.last_step) == (("n2", "n3"), 2, 0, STEPS)
    assert (run / "logs" / "rank_00000.log").exists() and (run / "logs" / "rank_00001.log").exists()


def test_at_the_time_limit_it_saves_and_queues_itself_again(runs: Together) -> None:
    run = runs["time limit"]
    attempts = told(run)
    assert len(attempts) >= 2 and attempts[-1] == (DONE, "finished")
    assert all(code == AGAIN and "time limit" in reason for code, reason in attempts[:-1]), attempts
    assert len({attempt.job for attempt in read_attempts(run)}) == 1, "it is one job, requeued"
    assert_same(run, runs["undisturbed"], FEW)


@pytest.mark.parametrize("name", ["chain", "array"])
def test_a_chain_goes_on_where_the_job_before_stopped(runs: Together, name: str) -> None:
    run = runs[name]
    attempts = read_attempts(run)
    assert attempts[-1].code == DONE and len({attempt.job for attempt in attempts}) == len(attempts) >= 2, told(run)
    assert_same(run, runs["undisturbed"], FEW)
    found = states(*folders(run)[-1].links)
    assert found.count("COMPLETED") == 1 and "CANCELLED" in found, "the rest of the chain is taken out of the queue"


def test_preempted_with_a_time_of_grace_it_saves(runs: Together) -> None:
    run = runs["grace"]
    assert told(run) == [(AGAIN, "preempted, state is saved"), (DONE, "finished")]
    first, second = read_attempts(run)
    assert second.first_step == first.last_step >= 2 * EVERY, "nothing is made twice"
    assert_same(run, runs["undisturbed"])


def test_preempted_without_grace_it_comes_back(runs: Together) -> None:
    run = runs["no grace"]
    (code, reason), last = told(run)
    assert code == AGAIN and reason.startswith("preempted") and last == (DONE, "finished")
    assert read_attempts(run)[1].first_step >= 2 * EVERY
    assert_same(run, runs["undisturbed"])


def test_a_node_that_dies_is_left_and_the_run_finishes(runs: Together) -> None:
    run = runs["node failure"]
    attempts = read_attempts(run)
    assert attempts[-1].code == DONE
    bad = folders(run)[-1].bad_nodes
    assert set(bad) == {attempts[0].nodes[-1]} and bad.keys().isdisjoint(attempts[-1].nodes), (bad, told(run))
    assert any(f"node {next(iter(bad))} failed" in attempt.reason for attempt in attempts), told(run)
    assert_same(run, runs["undisturbed"])


def test_a_crash_loop_ends_after_so_many_attempts(runs: Together) -> None:
    run = runs["crash loop"]
    assert [code for code, _ in told(run)] == [FAILED, FAILED]
    assert all("nowhere0" in reason for _, reason in told(run)), told(run)
    stopped = folders(run)[-1].stopped
    assert stopped is not None and "given up after 2 attempts in a row" in stopped["reason"]


def test_a_cancelled_run_has_saved_and_stays_away(runs: Together) -> None:
    run = runs["cancel"]
    assert told(run) == [(AGAIN, "cancelled, state is saved")]
    attempt = read_attempts(run)[0]
    assert attempt.saved_step == attempt.last_step >= EVERY
    assert_same(run, runs["undisturbed"], attempt.last_step)


def test_tasks_of_an_array_share_the_runs_of_a_sweep(runs: Together) -> None:
    sweep = runs["sweep"]
    told = [path.read_text() for path in sorted(sweep.glob("slurm-*.out"))]
    done = [[line for line in text.splitlines() if line.startswith("done")] for text in told]
    assert len(done) == 2 and all(done), "each task has made runs"
    assert sorted(line.split()[1] for lines in done for line in lines) == [f"seed={seed}" for seed in (1, 2, 3, 4)], (
        told
    )
