"""Times of calls that take turns, and the two rates that they are measured by.

On a GPU by events on the stream, behind a pause that lets the host run ahead, so that no launch is waited for, and after the L2
cache was overwritten. Contenders take turns and each round begins with another one: clocks drift, medians of neighbours less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from launcher.bench.kernels.record import Call, Place

FLUSH = 256 << 20  # bytes, several times the L2 of any GPU so far
PAUSE = 2_000_000  # clock cycles, about a millisecond
SAMPLES = 5  # of a turn


def seconds_of(calls: Mapping[str, Call], place: Place, rounds: int) -> dict[str, float]:
    """Median seconds of each call. The first turn, which compiles and allocates, is not counted."""
    clock = _Events(place.device) if place.device.type == "cuda" else _Wall()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for name in names:
        clock.turn(calls[name])
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name] += clock.turn(calls[name])
    return {name: statistics.median(times) for name, times in taken.items()}


class _Wall:
    """Of a CPU."""

    def turn(self, call: Call) -> list[float]:
        found = []
        for _ in range(SAMPLES):
            began = time.perf_counter()
            call()
            found.append(time.perf_counter() - began)
        return found


class _Events:
    """Of a GPU's stream."""

    def __init__(self, device: torch.device) -> None:
        self._flushed = torch.empty(FLUSH, dtype=torch.uint8, device=device)

    def turn(self, call: Call) -> list[float]:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(SAMPLES)]
        for before, after in pairs:
            self._flushed.zero_()
            torch.cuda._sleep(PAUSE)
            before.record()
            call()
            after.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def copy_rate(place: Place, rounds: int) -> float:
    """Bytes a second, read and written, of a copy many times as large as any cache."""
    count = (1 << 30) if place.device.type == "cuda" else (1 << 26)
    source, target = (torch.empty(count, dtype=torch.uint8, device=place.device) for _ in range(2))
    source.fill_(1)
    seconds = seconds_of({"copy": lambda: target.copy_(source)}, place, rounds)
    return 2 * count / seconds["copy"]


def product_rate(place: Place, rounds: int) -> float:
    """FLOP a second of a square product in the bench's dtype."""
    side = 8192 if place.device.type == "cuda" else 1024
    left, right = place.noise(side, side), place.noise(side, side)

    def product() -> Tensor:
        return left @ right

    return 2 * side**3 / seconds_of({"product": product}, place, rounds)["product"]


def peak_memory(call: Call, place: Place) -> int | None:
    """Bytes that a call takes beyond what was there, its results included; None where nobody counts."""
    if place.device.type != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before
