"""From turns to figures: medians over rounds, and ratios within a round, whose turns met the same noise."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.bench.turns import Contender, Turn

WARM_UP = 1  # steps at the start of every turn that are not counted: the others' turns emptied the caches
SAVE_EVERY = 4  # steps between saves where they are measured
COMPARED = 10  # losses: training amplifies rounding, so later ones tell less


class Turner(Protocol):
    """Who trains some steps when told to."""

    def turn(self, steps: int) -> Turn:
        """Train, and tell how it went."""


@dataclass
class Rounds:
    """Turns of several contenders. seconds: contender -> median step of each round."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, name: str, turn: Turn) -> None:
        """One more turn of a contender."""
        self.seconds.setdefault(name, []).append(statistics.median(turn.seconds[WARM_UP:]))
        self.losses.setdefault(name, []).extend(turn.losses)
        self.memory[name] = turn.memory

    def speed_against(self, ours: str, other: str) -> dict[str, float]:
        """How many times as fast `ours` is: median and quartiles of the ratios of every round."""
        ratios = [b / a for a, b in zip(self.seconds[ours], self.seconds[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return {"median": middle, "low": low, "high": high}


def compete(contenders: Mapping[str, Turner], rounds: int, steps: int) -> Rounds:
    """Turns of all contenders, round by round, each round beginning with another one."""
    found, names = Rounds(), list(contenders)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            found.add(name, contenders[name].turn(WARM_UP + steps))
    return found


def measure_saves(contenders: Mapping[str, Contender], rounds: int) -> dict[str, dict[str, float]]:
    """What a checkpoint costs each contender: two a round, and the first of all, which allocates, apart."""
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    first = {name: contender.turn(2 * SAVE_EVERY, SAVE_EVERY) for name, contender in contenders.items()}
    for _ in range(rounds):
        for name, contender in contenders.items():
            turns[name].append(contender.turn(3 * SAVE_EVERY, SAVE_EVERY))
    return {name: save_figures(turns[name], first[name]) for name in contenders}


def save_figures(turns: Sequence[Turn], first: Turn) -> dict[str, float]:
    """Stall and slowdown as shares of a plain step; plain steps are those that neither wait for a save nor run beside one."""
    stalls, beside, costs, plain = [], [], [], []
    for turn in turns:
        usual = statistics.median(plain_seconds(turn))
        plain.append(usual)
        for index, stall in turn.stalls.items():
            steps = turn.seconds[index + 1 : end_of_save(turn, index) + 1]
            stalls.append(stall / usual)
            beside.append((sum(steps) - stall) / (usual * len(steps)))
            costs.append((sum(steps) - usual * len(steps)) / usual)
    return {
        "step_seconds": statistics.median(plain),
        "stall_seconds": statistics.median(stall for turn in turns for stall in turn.stalls.values()),
        "stall_steps": statistics.median(stalls),
        "step_beside_writer": statistics.median(beside),
        "cost_steps": statistics.median(costs),
        "first_stall_steps": max(first.stalls.values()) / statistics.median(plain_seconds(first)),
        "saves": float(len(stalls)),
    }


def end_of_save(turn: Turn, index: int) -> int:
    """The last step that a save after step `index` may have slowed down."""
    return min((done for done in turn.committed if done > index), default=len(turn.seconds) - 1)


def plain_seconds(turn: Turn) -> list[float]:
    """Steps that no save touched, the warm-up left out."""
    touched = {step for index in turn.stalls for step in range(index + 1, end_of_save(turn, index) + 1)}
    return [seconds for step, seconds in enumerate(turn.seconds) if step >= WARM_UP and step not in touched]


def worst_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest relative difference at the start of two loss curves of the same work."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours[:COMPARED], theirs[:COMPARED], strict=True))


def memory_figures(memory: Mapping[str, Mapping[str, int]], ours: str, other: str) -> dict[str, Any]:
    """Peaks of all contenders in bytes, and ours against another's; on a GPU also what torch held there."""
    figures: dict[str, Any] = {"contenders": {name: dict(sizes) for name, sizes in memory.items()}}
    for kind in ("peak", "gpu_peak"):
        if kind in memory[ours]:
            figures[f"{kind}_ratio"] = memory[ours][kind] / memory[other][kind]
    return figures
