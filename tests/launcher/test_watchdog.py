"""A hang is broken: the run ends, one message names the rank that is missing, and the stacks of the others are there."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.failure import judge
from launcher.hang import Report, diagnose, tellers
from launcher.pace import STEP, Pace
from launcher.watchdog import stands
from parallel.flight import GroupState, _spoken
from tests.launcher.running import Done, Together, Triaxis, minute, rank_processes, records
from tests.launcher.test_errors import AT_STEP_3, fault

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 3.0  # seconds that a step of these runs may take
SPIN = "while True: pass"  # a rank that computes for ever


def stopped(triaxis: Triaxis, corpus: Path) -> tuple[Done, int, Path]:
    """What a run says whose second rank is stopped by a signal, the rank's process id, and its directory."""
    run = triaxis.directory / "runs" / "run"
    started = triaxis.start("train", *minute(corpus, 40_000, parallel__data=2, life__hang_seconds=LIMIT))
    started.until_step(run, 3, timeout=300)
    victim = rank_processes(triaxis)[1]
    os.kill(victim, signal.SIGSTOP)
    done = started.wait(300, code=1)
    triaxis.assert_nothing_runs()
    return done, victim, run


def spinning(triaxis: Triaxis, corpus: Path) -> tuple[Done, Path]:
    told = fault(triaxis.directory / "fault", 1, AT_STEP_3.format(SPIN))
    recipe = minute(corpus, 40_000, parallel__data=2, life__hang_seconds=LIMIT)
    done = triaxis.run("train", *recipe, code=1, timeout=300, **told)
    return done, triaxis.directory / "runs" / "run"


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path) -> Together:
    together.add("stopped", lambda triaxis: stopped(triaxis, corpus))
    together.add("spinning", lambda triaxis: spinning(triaxis, corpus))
    return together


def message(done: Done) -> str:
    return done.output[done.output.index("triaxis: ") :]


def test_a_rank_that_is_stopped_is_named_and_the_run_ends(ran: Together) -> None:
    done, victim, run = ran["stopped"]
    text = message(done)
    assert text.startswith("triaxis: the run hung: rank 1 ") and text.count("the run hung") == 1, text
    assert f"process {victim}" in text and "stopped by a signal" in text
    # rank 1 was stopped somewhere in a step, and not every collective of gloo is on record
    place = r"in step \d+ for \d+ s, at (launcher|parallel|models)/"
    assert re.search(rf"Rank 0 waits( at \w+ \d+ of [\w ]+)?: {place}", text), text
    assert "Traceback" not in text
    stacks = (run / "logs" / "hang_rank_00000.txt").read_text()
    assert "loop.py" in stacks and not (run / "logs" / "hang_rank_00001.txt").exists()
    verdict = judge(run, 2, 137)
    assert verdict.code == 1 and verdict.first is not None
    assert (verdict.first.rank, verdict.first.host) == (1, socket.gethostname())


def test_a_rank_that_never_arrives_is_named_with_its_place(ran: Together) -> None:
    done, run = ran["spinning"]
    text = message(done)
    assert text.startswith("triaxis: the run hung: rank 1 ") and "has not arrived" in text, text
    assert "in step 4" in text and "Rank 0 waits at all_reduce" in text
    for rank in (0, 1):
        assert "fit" in (run / "logs" / f"hang_rank_{rank:05d}.txt").read_text()
    assert "learning_rate" in (run / "logs" / "hang_rank_00001.txt").read_text()
    assert max(record["step"] for record in records(run, "step")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["parallel.tensor=2", "parallel.pipeline=2 parallel.engine=torch", "parallel.pipeline=2"]
)
def test_on_every_axis(triaxis: Triaxis, corpus: Path, layout: str) -> None:
    """Sends and receives of gloo are in no record: there the stacks tell who waits."""
    told = fault(triaxis.directory / "fault", 1, AT_STEP_3.format(SPIN))
    recipe = minute(corpus, 40_000, *layout.split(), life__hang_seconds=LIMIT)
    text = message(triaxis.run("train", *recipe, code=1, timeout=300, **told))
    assert text.startswith("triaxis: the run hung: rank 1 ") and "has not arrived" in text and "Rank 0 waits" in text


# Who is missing, from what ranks report

ROLL = [(f"node{rank // 2}", 100 + rank) for rank in range(4)]


def group(name: str, ranks: tuple[int, ...], entered: int, *, waits: bool) -> GroupState:
    return GroupState(name, ranks, entered, "all_reduce", entered, waits)


def report(rank: int, *groups: GroupState, waits: bool | None = None) -> Report:
    standing = any(one.waits for one in groups) if waits is None else waits
    return Report(rank, *ROLL[rank], 7, "step", 50.0, "launcher/loop.py:30 fit", standing, groups)


def found(*reports: Report) -> Any:
    return diagnose({one.rank: one for one in reports}, ROLL)


def test_the_end_of_a_chain_of_waiting_ranks_is_missing() -> None:
    """0 waits for 1 on the tensor axis, 1 and 3 for each other's data ranks, of which 3 is in no collective."""
    told = found(
        report(0, group("tensor", (0, 1), 5, waits=True)),
        report(1, group("tensor", (0, 1), 4, waits=False), group("data", (1, 3), 9, waits=True)),
        report(2, group("tensor", (2, 3), 5, waits=True)),
        report(3, group("tensor", (2, 3), 4, waits=False), group("data", (1, 3), 8, waits=False)),
    )
    assert told.missing == (3,)
    assert "rank 3 (host node1, process 103) has not arrived at all_reduce" in told.message
    assert "Rank 0 waits at all_reduce 5 of tensor" in told.message and "2 more wait too" in told.message


def test_whoever_says_nothing_is_missing_before_all_others() -> None:
    told = found(report(0, group("world", (0, 1, 2, 3), 5, waits=True)), report(1, waits=False))
    assert told.missing == (2, 3) and "node1" in told.message and "its node is" in told.message


def test_without_a_collective_on_record_it_is_whoever_waits_for_nobody() -> None:
    told = found(*(report(rank, waits=rank != 2) for rank in range(4)))
    assert told.missing == (2,) and "rank 2" in told.message


def test_a_circle_of_waiting_ranks_is_said_to_be_one() -> None:
    told = found(*(report(rank, waits=True) for rank in range(4)))
    assert "all ranks wait for one another" in told.message


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("default_pg", "world"),
        ("TENSOR_MODEL_PARALLEL_GROUP", "tensor"),
        ("DATA_PARALLEL_GROUP_WITH_CP", "data x context"),
    ],
)
def test_groups_are_named_as_people_do(theirs: str, ours: str) -> None:
    assert _spoken(theirs) == ours


def test_a_few_ranks_of_a_few_hosts_may_tell() -> None:
    assert tellers([("n0", 1)] * 3) == [0, 1, 2]
    large = tellers([(f"n{rank // 8}", rank) for rank in range(16_384)])
    assert large == [8 * host + rank for host in range(4) for rank in range(4)]


def test_where_a_main_thread_stands() -> None:
    told, waits = stands(sys._getframe())
    assert told.startswith("tests/launcher/test_watchdog.py") and not waits


def test_who_waits_in_torch_stands_where_our_code_called_it() -> None:
    """A .venv in the house holds torch: its frames are no code of ours."""
    frames: list[tuple[str, bool]] = []
    name = str(ROOT / ".venv" / "lib" / "site-packages" / "torch" / "distributed" / "distributed_c10d.py")
    called = {"look": lambda: frames.append(stands(sys._getframe(1)))}
    exec(compile("def gather():\n    look()\n", name, "exec"), called)
    called["gather"]()
    assert frames[0][0].startswith("tests/launcher/test_watchdog.py") and frames[0][1]


# What a rank's pace says


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_a_limit_comes_of_measured_steps_and_no_first_one() -> None:
    clock = Clock()
    pace = Pace(clock)
    for index, seconds in enumerate((60.0, 5.0, 6.0, 4.0)):
        pace.now(STEP, quick=index > 0)
        clock.time += seconds
        assert pace.limit(45.0) == 0.0  # too few are known
        assert pace.step_seconds == pytest.approx((60.0, 5.0, 6.0, 6.0)[index])
    pace.now("validation")
    clock.time += 30.0
    pace.now("validation", quick=True)
    clock.time += 10.0
    assert (pace.limit(45.0), pace.limit(200.0)) == (60.0, 200.0)
    assert pace.look_seconds == 0.0
    pace.now(STEP, quick=True)
    assert pace.look_seconds == pytest.approx(40.0)
    pace.new_phase()
    assert pace.limit(45.0) == 0.0 and pace.step_seconds == 0.0
