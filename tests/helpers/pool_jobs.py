"""Jobs that test the pool itself."""

from __future__ import annotations

import os
import signal
import time

import torch
import torch.distributed as dist


def add_ranks(more: float) -> tuple[int, float]:
    """(process id, sum of ranks over the world + more)."""
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    return os.getpid(), float(total) + more


def fail(rank: int) -> None:
    """One rank raises, the others wait for it in a collective."""
    if dist.get_rank() == rank:
        raise ValueError(f"the mistake of rank {rank}")
    dist.all_reduce(torch.zeros(1))


def fail_later_elsewhere(first: int, second: int) -> None:
    """Two ranks raise, one after the other."""
    if dist.get_rank() == first:
        raise ValueError("the cause")
    if dist.get_rank() == second:
        time.sleep(0.2)
        raise ValueError("a consequence")
    dist.all_reduce(torch.zeros(1))


def die(rank: int) -> None:
    """One rank is killed, the others wait for it."""
    if dist.get_rank() == rank:
        print("its last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.zeros(1))


def hang(rank: int) -> None:
    """One rank never comes."""
    if dist.get_rank() == rank:
        time.sleep(3600)
    dist.all_reduce(torch.zeros(1))
