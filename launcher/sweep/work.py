"""What a sweep has to do, by the kind of its search: every combination, trials one after another, or rungs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.derive import flops_of
from launcher.sweep.adopt import adopt
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.halving import Halving, candidates_of, survivors
from launcher.sweep.points import Planned, Point, fingerprint, points_of
from launcher.sweep.running import Runner, Stop
from launcher.sweep.store import Store
from launcher.sweep.trials import Proposer


def starting_points(sweep: SweepConfig, line: Sequence[str]) -> list[Point]:
    """Points that are known before the first run."""
    return candidates_of(sweep, line) if sweep.search.kind == "halving" else points_of(sweep, line)


class Work:
    """A sweep's runs, however they are found."""

    def __init__(
        self,
        store: Store,
        sweep: SweepConfig,
        line: Sequence[str],
        config_dir: str | None,
        planned: Sequence[Planned],
        told: Callable[[str], None],
    ) -> None:
        self.store, self.sweep, self.planned, self.told = store, sweep, planned, told
        self.halving = Halving(store, sweep, config_dir, told) if sweep.search.kind == "halving" else None
        drawn = sweep.search.kind in ("random", "optuna")
        self.propose = Proposer(store, sweep, line, config_dir, told) if drawn else None
        self._check_cost()

    @property
    def expected(self) -> int:
        """Runs that there will be."""
        search, count = self.sweep.search, len(self.planned)
        if self.propose is not None:
            return search.trials
        if self.halving is None:
            return 0  # as many as are entered
        total = 0
        for _ in search.rungs:
            total, count = total + count, survivors(count, search.keep)
        return total

    def _check_cost(self) -> None:
        if self.propose is not None:  # trials are counted one by one
            return
        runs = {fingerprint(one.configuration): one for one in self.planned}.values()
        total = self.halving.cost(list(runs)) if self.halving else sum(flops_of(one.recipe) for one in runs)
        if self.sweep.flops and total > self.sweep.flops:
            dear = max(runs, key=lambda one: flops_of(one.recipe))
            raise SweepError(
                f"sweep.flops={self.sweep.flops:g}: its {len(runs)} runs take {total:.3g} together, {dear.point.name} alone "
                f"{flops_of(dear.recipe):.3g}; leave labels out with sweep.only, shorten runs, or raise sweep.flops"
            )
        self.told(f"cost   {total:.3g} FLOP in all, forward and backward")

    def enter(self) -> set[str]:
        """The runs that are known by now are in the table."""
        if self.propose is not None:
            return {row.fingerprint for row in self.store.rows()}
        if self.halving is not None:
            return set()
        names = set(self.store.add(self.planned))
        for other, count in adopt(self.store, names).items():
            self.told(f"known  {count} of these runs are done in the sweep {other}; its figures are taken")
        return names

    def run(self, runner: Runner, stop: Stop) -> set[str]:
        """Do it; returns the runs that belong to it."""
        if self.halving is not None:
            self.halving.run(self.planned, runner, stop)
            return self.halving.among
        among = self.enter() if self.propose else set(self.store.add(self.planned))
        runner.run(among, stop, self.propose or (lambda: None))
        return self.enter() if self.propose else among  # what no recipe could be never ran, and failed
