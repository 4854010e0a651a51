"""kill -9 at random moments of saving, committing and deleting: the newest checkpoint is always whole and of one step."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from checkpoint_cases import cut
from kill_worker import COLUMNS, ROWS, TENSORS

from parallel.checkpoint.reader import load
from parallel.checkpoint.store import Store

MOMENTS = 30


@contextlib.contextmanager
def _worker() -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("kill_worker.py")
    process = subprocess.Popen([sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _until(process: subprocess.Popen[str], word: str) -> list[list[str]]:
    """Lines as words, up to the one that begins with `word`."""
    assert process.stdout is not None
    lines: list[list[str]] = []
    while not lines or lines[-1][0] != word:
        line = process.stdout.readline()
        assert line, f"the worker died; it said {lines}"
        lines.append(line.split())
    return lines


def _life(process: subprocess.Popen[str], directory: Path, first: int, rng: random.Random) -> int:
    """One attempt's life and death at a random moment; returns the newest step it said it had committed, or -1.

    Either both ranks die at once, or one and, a little later, the other: as a node that fails and its launcher's reaction.
    """
    assert process.stdin is not None
    process.stdin.write(f"{directory} {first}\n")
    process.stdin.flush()
    ranks = [int(word) for word in _until(process, "ranks")[-1][1:]]
    rng.shuffle(ranks)
    said = _until(process, "saving") if rng.random() < 0.8 else []  # otherwise it may die before it has begun
    time.sleep(rng.uniform(0.0, 0.2))
    os.kill(ranks[0], signal.SIGKILL)
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0.0, 0.05))
    os.kill(ranks[1], signal.SIGKILL)
    said += _until(process, "dead")
    assert not [words for words in said if words[0] == "failed"]
    return max((int(words[1]) for words in said if words[0] == "committed"), default=-1)


def test_killed_at_random_moments_the_newest_checkpoint_is_whole_and_of_one_step(tmp_path: Path) -> None:
    rng = random.Random(time.time_ns())  # other moments in every run; nothing may ever fail
    newest, inside = -1, 0
    with _worker() as process:
        for _ in range(MOMENTS):
            committed = _life(process, tmp_path, newest + 1, rng)
            inside += any(tmp_path.glob("step_*.tmp-*"))
            newest = max(newest, _check(tmp_path, max(newest, committed), rng))
    assert newest > 0, "nothing was ever committed: the delays are too short to test anything"
    assert inside > MOMENTS // 3, f"only {inside} of {MOMENTS} kills struck inside a save"


def _check(directory: Path, committed: int, rng: random.Random) -> int:
    """The newest checkpoint holds one step everywhere and is no older than the last commit; returns its step or -1."""
    store = Store(directory)
    found = store.latest(fall_back=False, verify=True)
    if found is None:
        assert committed < 0, f"step {committed} was committed and is lost"
        return -1
    assert found.step >= committed
    for other in store.list():
        assert other.whole, other.problem
        wholes = {f"w{i}": torch.full((ROWS, COLUMNS), -1.0) for i in range(TENSORS)}
        parts = cut(random.Random(rng.random()), wholes, 1)
        state = load(other.path, parts[0])
        for piece in parts[0]:
            assert bool((piece.tensor == other.step).all()), "values of two steps in one checkpoint"
        assert state == {"step": other.step}
    return found.step
