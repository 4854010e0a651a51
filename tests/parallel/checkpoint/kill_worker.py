"""A process to be killed: imports torch once, then forks ranks that save in a loop. Run by test_kill.py.

Reads lines `<directory> <first step>` from stdin: opens an attempt, forks two ranks, prints their process ids. They save
steps one after another; rank 0 prints `saving <step>`, both print `committed <step>`. Once both are dead (the test kills
them) it prints `dead`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))

from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.store import Retention, Store
from parallel.checkpoint.writer import Saver

ROWS, COLUMNS, RANKS = 512, 384, 2
TENSORS = 3


def say(text: str) -> None:
    """One write a line, so that lines of several processes do not mix."""
    os.write(1, f"{text}\n".encode())


def train(store: Store, step: int) -> None:
    """Save for ever; every element of every tensor is the step."""
    half = ROWS // RANKS
    mine = [torch.zeros(half, COLUMNS) for _ in range(TENSORS)]
    pieces = [Piece(f"w{i}", (ROWS, COLUMNS), (store.rank * half, 0), tensor) for i, tensor in enumerate(mine)]
    saver = Saver(store, retention=Retention(keep_last=2), timeout=30)
    while True:
        for tensor in mine:
            tensor.fill_(step)
        saver.save(step, pieces, {"step": step})
        if store.rank == 0:
            say(f"saving {step}")
        for event in saver.poll():
            say(f"committed {event.step}" if event.committed else f"failed {event.message}")
        step += 1


def fork(store: Store, step: int) -> int:
    child = os.fork()
    if child == 0:
        try:
            train(store, step)
        finally:
            os._exit(1)
    return child


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        directory, first = line.rsplit(" ", 1)
        attempt = Store(directory, 0, RANKS).open_attempt()
        children = [fork(Store(directory, rank, RANKS, attempt), int(first)) for rank in range(RANKS)]
        say(f"ranks {children[0]} {children[1]}")
        for child in children:
            os.waitpid(child, 0)
        say("dead")


if __name__ == "__main__":
    main()
