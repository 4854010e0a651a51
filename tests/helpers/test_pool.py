"""The pool that the tests of layouts stand on: results, the first error, and no process left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import pool_jobs
from tests.helpers.pool import ROOT, Pools, RankError

pytestmark = pytest.mark.slow  # they start and end a dozen processes to test the tests


@pytest.fixture
def own() -> Iterator[Pools]:
    found = Pools()
    yield found
    found.close()


def alive(process: int) -> bool:
    """Whether a process runs; a zombie, which nobody has asked after yet, does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(processes: list[int]) -> None:
    deadline = time.monotonic() + 10
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, "processes are left"
        time.sleep(0.05)


def test_every_rank_answers_and_the_processes_stay(own: Pools) -> None:
    first = own.run(3, pool_jobs.add_ranks, more=0.5)
    second = own.run(3, pool_jobs.add_ranks, more=1.5)
    assert [answer for _, answer in first] == [3.5] * 3
    assert [answer for _, answer in second] == [4.5] * 3
    assert [process for process, _ in first] == [process for process, _ in second]
    own.close()
    wait_until_gone([process for process, _ in first])


def test_the_first_error_is_shown_and_the_pool_is_replaced(own: Pools) -> None:
    before = own.run(3, pool_jobs.add_ranks, more=0)
    with pytest.raises(RankError, match=r"rank 1 of 3 failed first: (?s:.*)ValueError: the mistake of rank 1"):
        own.run(3, pool_jobs.fail, rank=1)
    wait_until_gone([process for process, _ in before])
    assert [answer for _, answer in own.run(3, pool_jobs.add_ranks, more=0)] == [3.0] * 3


def test_a_cause_comes_before_its_consequence(own: Pools) -> None:
    with pytest.raises(RankError, match=r"rank 2 of 3 failed first(?s:.*)the cause"):
        own.run(3, pool_jobs.fail_later_elsewhere, first=2, second=0)


def test_a_killed_rank_is_told_with_its_last_words(own: Pools) -> None:
    with pytest.raises(RankError, match=r"rank 1 of 2 failed first: .*SIGKILL(?s:.*)its last words"):
        own.run(2, pool_jobs.die, rank=1)


def test_a_hang_shows_where_every_rank_stands(own: Pools) -> None:
    with pytest.raises(RankError, match=r"ranks \[0, 1\] of 2 gave no answer in 3 s(?s:.*)all_reduce(?s:.*)in hang"):
        own.run(2, pool_jobs.hang, rank=1, timeout=3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_nothing_outlives_the_parent(number: signal.Signals, tmp_path: Path) -> None:
    """Killed while its ranks wait for one that never comes."""
    told = tmp_path / "ranks"
    script = (
        "import pathlib\n"
        "from tests.helpers import pool_jobs\n"
        "from tests.helpers.pool import Pools\n"
        "pools = Pools()\n"
        "ranks = [process for process, _ in pools.run(2, pool_jobs.add_ranks, more=0)]\n"
        f"pathlib.Path({str(told)!r}).write_text(' '.join(map(str, ranks)))\n"
        "pools.run(2, pool_jobs.hang, rank=0)\n"
    )
    # no pipes: whatever outlived the parent would hold them open, and the test would wait instead of failing
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (told.exists() and len(told.read_text().split()) == 2):
            assert parent.poll() is None and time.monotonic() < deadline, "the parent did not start its ranks"
            time.sleep(0.05)
        ranks = [int(word) for word in told.read_text().split()]
        assert all(map(alive, ranks))
        parent.send_signal(number)
        parent.wait(10)
        wait_until_gone(ranks)
    finally:
        parent.kill()
        parent.wait(10)
