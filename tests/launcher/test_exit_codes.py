"""Exit codes of ranks that srun would start: what another attempt cannot cure says so, whichever rank saw it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from data.config import DataError, Unreachable
from launcher.exits import AGAIN, DONE, FAILED, NEVER
from launcher.failure import Failure, clear_failures, is_echo, judge, read_failures, write_failure, write_word
from launcher.rank import code_of
from launcher.workers import free_port
from parallel.checkpoint.errors import CheckpointCorrupt, NotSaved
from tests.launcher.running import Done, Started, Together, Triaxis, committed, minute, records
from tests.launcher.test_errors import AT_STEP_3, fault

HIGHEST_OF_SRUN = 137  # it ends the peers of a rank that failed, with SIGKILL


def as_srun(triaxis: Triaxis, recipe: list[str], *, world: int = 2, **environment: str) -> list[Started]:
    """Ranks as srun starts them: with SLURM's names for their places, and no launcher of ours."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "SLURM_NTASKS": str(world), **environment}
    program = [sys.executable, "-u", "-m", "launcher.train"]
    return [
        triaxis.start(*recipe, program=program, **common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in range(world)
    ]


def ended(ranks: list[Started]) -> list[Done]:
    return [rank.wait(300) for rank in ranks]


def failing(triaxis: Triaxis, corpus: Path, error: str) -> tuple[list[int], Path]:
    """Codes of two ranks of which the second meets an error at the third step, as srun would start them."""
    told = fault(triaxis.directory / "fault", 1, AT_STEP_3.format(error))
    codes = [done.code for done in ended(as_srun(triaxis, minute(corpus, 4000, parallel__data=2), **told))]
    triaxis.assert_nothing_runs()
    return codes, triaxis.directory / "runs" / "run"


USERS = "import data.config; raise data.config.DataError('shard 3 is not what the manifest says')"


@pytest.fixture(scope="module")
def ran(together: Together, corpus: Path) -> Together:
    together.add("users", lambda triaxis: failing(triaxis, corpus, USERS))
    together.add("unforeseen", lambda triaxis: failing(triaxis, corpus, "raise ArithmeticError('out of the blue')"))
    together.add("mistake", lambda triaxis: [*ended(as_srun(triaxis, minute(corpus, 2, parallel__data=3)))])
    together.add("signal", lambda triaxis: signalled(triaxis, corpus))
    return together


def signalled(triaxis: Triaxis, corpus: Path) -> tuple[list[int], Path]:
    """Codes of two ranks of which one is sent USR2."""
    run = triaxis.directory / "runs" / "run"
    ranks = as_srun(triaxis, minute(corpus, 4000, parallel__data=2))
    ranks[1].until_step(run, 3, timeout=300)
    ranks[1].process.send_signal(signal.SIGUSR2)
    return [done.code for done in ended(ranks)], run


def test_one_ranks_mistake_is_never_cured_and_its_peers_break_does_not_hide_it(ran: Together) -> None:
    codes, run = ran["users"]
    assert codes == [FAILED, NEVER]
    told = judge(run, 2, HIGHEST_OF_SRUN)
    assert told.code == NEVER and "rank 1" in told.reason and "shard 3" in told.reason
    assert told.first is not None and told.first.host and not told.first.echo
    assert [failure.echo for failure in sorted(read_failures(run), key=lambda found: found.rank)] == [True, False]


def test_what_nobody_foresaw_may_be_tried_again(ran: Together) -> None:
    codes, run = ran["unforeseen"]
    assert codes == [FAILED, FAILED]
    told = judge(run, 2, HIGHEST_OF_SRUN)
    assert told.code == FAILED and "rank 1 failed first: ArithmeticError: out of the blue" in told.reason


def test_a_recipe_that_cannot_be_is_told_by_every_rank_alike(ran: Together) -> None:
    done = ran["mistake"]
    assert [found.code for found in done] == [NEVER, NEVER]
    assert all("parallel.data=3" in found.output for found in done)


def test_one_ranks_signal_stops_all_with_state_saved(ran: Together) -> None:
    codes, run = ran["signal"]
    assert codes == [AGAIN, AGAIN] and judge(run, 2, AGAIN).code == AGAIN
    assert committed(run)[-1] == records(run, "step")[-1]["step"] >= 3


def test_on_a_terminal_a_mistake_is_exit_code_1(triaxis: Triaxis, corpus: Path, tmp_path: Path) -> None:
    """Met by a rank, and by nobody before ranks start."""
    done = triaxis.run("train", *minute(corpus, 2, run__init_from=tmp_path / "nowhere"), code=1)
    assert "nowhere" in done.output and "Traceback" not in done.output
    (found,) = read_failures(tmp_path / "runs" / "run")
    assert found.code == NEVER


# Judging by what ranks left


def word(run: Path, rank: int, when: float, *, code: int = FAILED, echo: bool = False) -> None:
    write_word(run, Failure(rank, when, f"error of {rank}", host=f"node{rank}", code=code, echo=echo))


def test_the_cause_comes_before_its_echoes_whatever_clocks_say(tmp_path: Path) -> None:
    word(tmp_path, 0, 100.0, echo=True)  # its host's clock is late
    word(tmp_path, 5, 107.0, code=NEVER)
    word(tmp_path, 2, 108.0)
    told = judge(tmp_path, 8, HIGHEST_OF_SRUN)
    assert (told.code, told.first and told.first.host) == (NEVER, "node5") and "rank 5 on node5" in told.reason


def test_ranks_that_died_in_silence_are_named(tmp_path: Path) -> None:
    word(tmp_path, 0, 1.0, echo=True)
    told = judge(tmp_path, 3, HIGHEST_OF_SRUN)
    assert told.code == FAILED and told.reason.startswith("ranks 1, 2 ended without a word; rank 0 on node0 noticed: ")
    clear_failures(tmp_path)
    told = judge(tmp_path, 3, HIGHEST_OF_SRUN)
    assert told.code == FAILED and "SIGKILL" in told.reason


def test_ranks_that_ended_well_are_believed(tmp_path: Path) -> None:
    word(tmp_path, 0, 1.0)  # of a rank that lost something at its very end
    assert judge(tmp_path, 1, DONE).code == DONE and judge(tmp_path, 1, AGAIN).code == AGAIN
    clear_failures(tmp_path)
    assert judge(tmp_path, 1, NEVER).code == NEVER


def test_a_signal_before_ranks_listen_is_an_interruption(tmp_path: Path) -> None:
    told = judge(tmp_path, 2, 128 + signal.SIGTERM)
    assert judge(tmp_path, 2, -signal.SIGUSR2).code == AGAIN  # as subprocess says it
    assert told.code == AGAIN and "SIGTERM" in told.reason
    word(tmp_path, 1, 1.0)
    assert judge(tmp_path, 2, 128 + signal.SIGTERM).code == FAILED


def test_a_torn_word_is_no_word(tmp_path: Path) -> None:
    word(tmp_path, 0, 1.0, code=NEVER)
    path = next((tmp_path / "logs").glob("*.error"))
    path.write_text(path.read_text()[:20])
    assert read_failures(tmp_path) == [] and judge(tmp_path, 1, 1).code == FAILED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no such shard"), NEVER),
        (Unreachable("not received after 5 attempts"), FAILED),
        (CheckpointCorrupt("altered"), NEVER),
        (NotSaved("disk full"), FAILED),
        (KeyError("loss"), FAILED),
    ],
)
def test_what_an_error_asks_for(error: Exception, code: int) -> None:
    assert code_of(error) == code


def test_what_a_peers_death_looks_like(tmp_path: Path) -> None:
    pair = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:29876"
    assert is_echo(RuntimeError(pair)) and not is_echo(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    write_failure(tmp_path, 3, RuntimeError(pair), code=FAILED, users=False)
    told = json.loads((tmp_path / "logs" / "rank_00003.error").read_text())
    assert told["echo"] is True and "RuntimeError" in told["detail"]
