"""Trials of a search as points of the table: what is drawn becomes a run, until there are enough or the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.derive import flops_of
from launcher.sweep.adopt import adopt
from launcher.sweep.config import SweepConfig, SweepError
from launcher.sweep.points import Planned, Point, plan
from launcher.sweep.search import Tried, draw, written
from launcher.sweep.store import Row, Store

TRIAL = "trial"  # the axis of trials


def trial_point(sweep: SweepConfig, number: int, line: Sequence[str], tried: Sequence[Tried] = ()) -> Point:
    """The point of a trial: its label tells its number and its values."""
    values = {option: written(value) for option, value in draw(sweep.search, number, tried).items()}
    short = (f"{option.rpartition('.')[2]}={text}" for option, text in values.items())
    own = tuple(f"{option}={text}" for option, text in values.items())
    return Point({TRIAL: " ".join([f"{number:03d}", *short])}, number, own, tuple(line))


def tried_of(sweep: SweepConfig, rows: Sequence[Row]) -> list[Tried]:
    """What is known of the trials before."""
    found = []
    for row in rows:
        given = dict(text.partition("=")[::2] for text in row.overrides)
        loss = row.figures.get(sweep.metric, float("nan")) if row.state == "done" else None
        values = {option: given[option] for option in sweep.search.space}
        found.append(
            Tried(values, float("nan") if row.state == "done" and loss is None else loss, row.state == "failed")
        )
    return found


class Proposer:
    """Enters one trial after another; several of them may work on one table."""

    def __init__(
        self, store: Store, sweep: SweepConfig, line: Sequence[str], config_dir: str | None, told: Callable[[str], None]
    ) -> None:
        self.store, self.sweep, self.line, self.config_dir, self.told = store, sweep, tuple(line), config_dir, told
        self._costs: dict[str, float] = {}
        for option in sweep.search.space:
            if any(text.lstrip("+").startswith(f"{option}=") for text in line):
                raise SweepError(
                    f"{option}: is drawn from sweep.search.space and given on the command line; leave one out"
                )

    def __call__(self) -> str | None:
        """The fingerprint of a new trial's run; None where there are enough, or the next would exceed the budget."""
        rows = self.store.rows()
        while len(rows) < self.sweep.search.trials:
            point = trial_point(self.sweep, len(rows), self.line, tried_of(self.sweep, rows))
            try:
                planned = plan([point], self.config_dir)[0]
            except SweepError as error:  # a combination that no model is: others may be
                self.store.refuse(point, str(error))
                self.told(f"failed  {error}")
                rows = self.store.rows()
                continue
            if not self._affordable(rows, planned):
                return None
            name = self.store.add([planned])[0]
            adopt(self.store, [name])
            return name
        return None

    def _affordable(self, rows: Sequence[Row], planned: Planned) -> bool:
        """Whether the budget allows for one more beside all that ran or runs."""
        if not self.sweep.flops:
            return True
        spent = sum({row.fingerprint: self._cost(row) for row in rows}.values())
        cost = flops_of(planned.recipe)
        if spent + cost <= self.sweep.flops:
            return True
        self.told(
            f"sweep.flops={self.sweep.flops:g}: {spent:.3g} are spent, and the next trial would take {cost:.3g}; no more begin"
        )
        return False

    def _cost(self, row: Row) -> float:
        if row.state == "done" and "flops" in row.figures:
            return float(row.figures["flops"])
        if row.state == "failed" and not row.figures:
            return 0.0
        if row.fingerprint not in self._costs:
            point = Point(row.labels, 0, row.overrides, ())
            self._costs[row.fingerprint] = flops_of(plan([point], self.config_dir)[0].recipe)
        return self._costs[row.fingerprint]
