"""A run at the scale of a cluster, failures and all, played many times over."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

from launcher.plan.goodput import GPU_HOURS_PER_FAILURE, RESTART_SECONDS, Checkpoint

REPAIR_HOURS = 24.0
"""Hours until a node that failed is back among the spares. Judgement."""
NODE_LOST = 0.6
"""Share of failures after which a node is exchanged: GPUs, memory, hosts and cables of Llama 3's table 5, without what a
restart cures."""


@dataclass(frozen=True)
class Run:
    """A run that is to be played. work: seconds of steps alone; interval: seconds of them from one checkpoint to the next."""

    work: float
    gpus: int
    checkpoint: Checkpoint
    interval: float
    spares: int
    gpu_hours: float = GPU_HOURS_PER_FAILURE
    restart: float = RESTART_SECONDS


@dataclass(frozen=True)
class Outcome:
    """Of all plays: seconds of the whole run (each play's, ascending), failures and seconds of waiting for a node (means)."""

    seconds: tuple[float, ...]
    failures: float
    waiting: float
    work: float

    def quantile(self, share: float) -> float:
        """Seconds within which that share of the plays was done."""
        return self.seconds[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    @property
    def goodput(self) -> float:
        """Share of all plays' time that was training which lasted."""
        return self.work * len(self.seconds) / sum(self.seconds)


def simulate(run: Run, plays: int, seed: int) -> Outcome:
    """Play a run. Failures come at random (exponentially) at any time, also while it restarts; each takes back to the
    newest checkpoint that was written, costs a restart, and now and then a node, which a spare replaces, or the first
    that is repaired."""
    dice = random.Random(seed)
    found = [_play(run, dice) for _ in range(plays)]
    failures, waiting = (sum(one[index] for one in found) / plays for index in (1, 2))
    return Outcome(tuple(sorted(one[0] for one in found)), failures, waiting, run.work)


def _play(run: Run, dice: random.Random) -> tuple[float, int, float]:
    """(seconds, failures, seconds of waiting for a node) of one play."""
    between, cycle = run.gpu_hours * 3600 / run.gpus, run.interval + run.checkpoint.stall
    now = saved = waited = 0.0
    failures, spares = 0, run.spares
    repaired: list[float] = []  # when nodes come back
    while True:
        left = run.work - saved
        needed = left + run.checkpoint.stall * (left // run.interval)
        until = dice.expovariate(1 / between)
        if until >= needed:
            return now + needed, failures, waited
        done, into = divmod(until, cycle)
        safe = done - (done > 0 and into < run.checkpoint.write - run.checkpoint.stall)
        saved += safe * run.interval
        now += until
        failures += 1
        while repaired and repaired[0] <= now:
            heapq.heappop(repaired)
            spares += 1
        if dice.random() < NODE_LOST:
            heapq.heappush(repaired, now + REPAIR_HOURS * 3600)
            if spares:
                spares -= 1
            else:
                back = heapq.heappop(repaired)
                waited += back - now
                now = back
        again = dice.expovariate(1 / between)
        while again < run.restart:  # fails before it has begun
            now, failures = now + again, failures + 1
            again = dice.expovariate(1 / between)
        now += run.restart
