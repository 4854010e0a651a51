"""Successive halving (arXiv 1502.07943): all runs go as far as the first rung, the best of them to the next, and so on.

A rung is a share of a run's own budget: the run stops there by train.max_steps, and its successor begins from all that it
saved. Learning rates follow the whole budget at every rung, so a run that gets to the end is the run that it would have been
alone. What is compared at a rung is the validation loss in the middle of a schedule: fair under a constant or wsd schedule, of
which nothing has fallen yet; under a cosine, which has fallen alike for all, high learning rates look worse than they end.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.derive import flops_of
from launcher.slots import Slots
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.points import Planned, Point, plan, points_of
from launcher.sweep.running import Runner, Stop
from launcher.sweep.store import Row, Store
from launcher.sweep.trials import trial_point

RUNG = "rung"  # the axis of rungs
_DECIDED = ("train.max_steps=", "run.init_from=", "run.init_what=")
LOOK_SECONDS = 1.0  # between looks at what others run


def candidates_of(sweep: SweepConfig, line: Sequence[str]) -> list[Point]:
    """What begins: combinations of the axes, or trials drawn from the space."""
    for text in line:
        if text.lstrip("+").startswith(_DECIDED):
            raise SweepError(f"{text}: halving decides where a run stops and what it begins from; leave it out")
    if sweep.axes:
        return points_of(sweep, line)
    return [trial_point(sweep, number, line) for number in range(sweep.search.trials)]


def survivors(count: int, keep: float) -> int:
    """How many of so many runs go on from a rung."""
    return max(1, math.floor(count * keep))


class Halving:
    """The rungs of a sweep, one after another; whoever calls again goes on where it stopped."""

    def __init__(self, store: Store, sweep: SweepConfig, config_dir: str | None, told: Callable[[str], None]) -> None:
        self.store, self.sweep, self.config_dir, self.told = store, sweep, config_dir, told
        self.among: set[str] = set()

    def cost(self, planned: Sequence[Planned]) -> float:
        """Floating-point operations of all rungs at most: where the dearest go on."""
        costs = sorted((flops_of(one.recipe) for one in planned), reverse=True)
        total, before = 0.0, 0.0
        for share in self.sweep.search.rungs:
            total += (share - before) * sum(costs)
            costs, before = costs[: survivors(len(costs), self.sweep.search.keep)], share
        return total

    def run(self, planned: Sequence[Planned], runner: Runner, stop: Stop) -> None:
        """All rungs. Checkpoints are kept until the next rung is done."""
        runner.sweep = replace(self.sweep, keep_checkpoints=True)
        alive: list[tuple[Planned, str]] = [(one, "") for one in planned]
        before: list[Row] = []
        for index, share in enumerate(self.sweep.search.rungs):
            points = [_at(one, share, begin, index * len(planned)) for one, begin in alive]
            names = self.store.add(plan(points, self.config_dir))
            self.among |= set(names)
            if not self._finish(set(names), runner, stop):
                return
            rows = {row.fingerprint: row for row in self.store.rows()}
            self._forget(before)
            before = [rows[name] for name in names]
            alive = self._best([(one, rows[name]) for (one, _), name in zip(alive, names, strict=True)])
            if share < 1 and alive:
                self.told(
                    f"rung {share:g}: {len(alive)} of {len(names)} go on: {', '.join(one.point.name for one, _ in alive)}"
                )
        self._forget(before)

    def _finish(self, names: set[str], runner: Runner, stop: Stop) -> bool:
        """Run a rung, and wait for what others run of it; False where somebody asked to stop."""
        while True:
            runner.run(names, stop)
            if stop.wanted:
                return False
            if not any(row.state in ("running", "waiting") for row in self.store.rows() if row.fingerprint in names):
                return True
            time.sleep(LOOK_SECONDS)

    def _best(self, ended: Sequence[tuple[Planned, Row]]) -> list[tuple[Planned, str]]:
        """Those that go on, best first: runs that failed or diverged do not."""
        metric = self.sweep.metric
        known = [
            (float(row.figures[metric]), place, one, row)
            for place, (one, row) in enumerate(ended)
            if row.state == "done" and row.figures.get(metric) is not None and math.isfinite(row.figures[metric])
        ]
        best = sorted(known, key=lambda entry: entry[:2])[: survivors(len(ended), self.sweep.search.keep)]
        return [(one, str(self.store.directory / row.directory)) for _, _, one, row in best]

    def _forget(self, rows: Sequence[Row]) -> None:
        if not self.sweep.keep_checkpoints:
            for row in rows:
                shutil.rmtree(Path(self.store.directory) / row.directory / "checkpoints", ignore_errors=True)


def _at(planned: Planned, share: float, begin: str, first: int) -> Point:
    """A candidate at a rung: as far as its share of the steps, from where the rung before ended."""
    recipe, point = planned.recipe, planned.point
    steps = math.ceil(share * Slots(recipe.train).steps(0, recipe.train.tokens))
    stops = (f"train.max_steps={steps}",) if share < 1 else ()
    begins = (f"run.init_from={begin}", "run.init_what=everything") if begin else ()
    labels = {**point.labels, RUNG: f"{share:g}"}
    return Point(labels, first + point.position, (*point.own, *stops, *begins), point.line)
