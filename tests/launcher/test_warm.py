"""Commands as forks (warm.py) do what real ones do, so that tests may start them for a fraction of the time."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.launcher.running import Triaxis, assert_same_curve, last_step, minute


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_fork_says_and_computes_what_a_real_command_does(corpus: Path, tmp_path: Path, ranks: int) -> None:
    said = []
    for cold in (True, False):
        directory = tmp_path / str(cold)
        directory.mkdir()
        triaxis = Triaxis(directory, cold=cold)
        try:
            said.append(triaxis.run("train", *minute(corpus, 6, parallel__data=ranks)).output)
        finally:
            triaxis.end()
    real, forked = ([line for line in text.splitlines() if not timed(line)] for text in said)
    assert forked == real and len(real) > 8
    assert_same_curve(tmp_path / "False" / "runs" / "run", tmp_path / "True" / "runs" / "run")


def timed(line: str) -> bool:
    """Whether a line tells seconds or rates of its machine."""
    return line.startswith(("health", "product", "axis", "step")) or "tokens/s" in line


def test_a_fork_ends_with_a_real_ones_codes(triaxis: Triaxis, corpus: Path) -> None:
    assert triaxis.start("nonsense").wait(60).code == 1
    assert triaxis.start("help").wait(60).code == 0
    started = triaxis.start("train", *minute(corpus, 4000))
    started.until_step(triaxis.directory / "runs" / "run", 2)
    started.process.send_signal(signal.SIGTERM)
    assert started.wait(60).code == 75
    triaxis.assert_nothing_runs()


def test_what_a_killed_fork_leaves_is_found(triaxis: Triaxis, corpus: Path) -> None:
    """Ranks of a world end with their launcher; what is left until then is seen, as orphans in sessions of their own."""
    run = triaxis.directory / "runs" / "run"
    started = triaxis.start("train", *minute(corpus, 4000, parallel__data=2))
    started.until(lambda: last_step(run) > 1, "a step")
    names = sorted(Path(f"/proc/{pid}/comm").read_text().strip() for pid in triaxis.processes())
    assert {"nursery", "rank_0", "rank_1"} <= set(names) and len(names) == 4, names
    os.kill(started.process.pid, signal.SIGKILL)
    assert started.wait(30).code == -signal.SIGKILL
    triaxis.assert_nothing_runs()
