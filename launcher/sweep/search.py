"""Trials: points that are drawn instead of listed. What is drawn is a function of (seed, number of the trial, what is known).

The table of the sweep is all the storage there is: Optuna is told anew of every trial before it is asked for the next, so a
search goes on after any interruption, and several writers ask without knowing of one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

KINDS = ("grid", "random", "optuna", "halving")
_DIGITS = 6  # of a number that is drawn


class SweepError(ValueError):
    """A sweep that cannot be: the message names the option, the value, the limit and the cure."""


@dataclass(frozen=True)
class SearchConfig:
    """How the runs of a sweep are found."""

    kind: str = "grid"
    """grid, every combination of sweep.axes; random, trials drawn from `space`; optuna, trials proposed by Optuna's TPE from
    those before them (the extra `search`); halving, combinations of the axes or random trials, of which only the best go on."""
    trials: int = 0
    """Trials in all that are drawn from `space`."""
    seed: int = 1
    """Decides what is drawn."""
    space: dict = field(default_factory=dict)
    """What trials differ in, by option: a list of values, or {low: 1e-4, high: 1e-2, log: true} with both ends; whole numbers
    where both ends are."""
    rungs: tuple[float, ...] = ()
    """halving only: shares of a run's budget after which the best go on, ascending; the last is 1."""
    keep: float = 0.5
    """halving only: share of runs that go on from a rung, rounded down, at least one."""

    def __post_init__(self) -> None:
        """Refuse what has no effect, and spaces that cannot be."""
        if self.kind not in KINDS:
            raise SweepError(f"sweep.search.kind={self.kind}: choose one of {', '.join(KINDS)}")
        if self.kind == "grid" and (self.space or self.trials):
            raise SweepError(
                "sweep.search.space and trials: have no effect with sweep.search.kind=grid; choose another kind"
            )
        if self.kind in ("random", "optuna") and not self.space:
            raise SweepError(
                f"sweep.search.kind={self.kind}: draws from sweep.search.space, which is empty; give it options"
            )
        if self.space and self.trials < 1:
            raise SweepError(
                f"sweep.search.trials={self.trials}: must be at least 1 where trials are drawn from a space"
            )
        if self.trials and not self.space:
            raise SweepError(
                f"sweep.search.trials={self.trials}: has no effect without sweep.search.space; give it options"
            )
        for option, given in self.space.items():
            _check_dimension(f"sweep.search.space.{option}", option, given)
        self._check_halving()

    def _check_halving(self) -> None:
        if self.kind != "halving":
            if self.rungs or self.keep != 0.5:
                raise SweepError(
                    "sweep.search.rungs and keep: have no effect unless sweep.search.kind=halving; leave them out"
                )
            return
        ascending = all(low < high for low, high in zip(self.rungs, self.rungs[1:], strict=False))
        if len(self.rungs) < 2 or not ascending or self.rungs[0] <= 0 or self.rungs[-1] != 1:
            raise SweepError(
                f"sweep.search.rungs={list(self.rungs)}: must be two shares or more, ascending from above 0 to 1, such as "
                "[0.125,0.25,0.5,1]"
            )
        if not 0 < self.keep < 1:
            raise SweepError(f"sweep.search.keep={self.keep}: must be above 0 and below 1")


def _check_dimension(place: str, option: str, given: Any) -> None:
    if option.startswith(("sweep.", "run.name", "run.dir", "experiment")):
        raise SweepError(f"{place}: cannot differ from run to run; leave it out")
    if isinstance(given, (list, tuple)) and given:
        return
    if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= {"low", "high", "log"}:
        raise SweepError(f"{place}={given!r}: must be a list of values, or low and high, and log where it applies")
    low, high = (_number(f"{place}.{end}", given[end]) for end in ("low", "high"))
    if not low < high or (given.get("log") and low <= 0):
        raise SweepError(f"{place}={given!r}: low must be below high, and above 0 with log")


def _number(place: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SweepError(f"{place}={value!r}: must be a number") from None


@dataclass(frozen=True)
class Range:
    """A dimension of numbers, both ends included."""

    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Range:
        """From a recipe, whose 1e-4 may have come as text."""
        whole = all(isinstance(given[end], int) for end in ("low", "high"))
        return cls(float(given["low"]), float(given["high"]), bool(given.get("log", False)), whole)

    def rounded(self, value: float) -> float | int:
        """A drawn number with as many digits as are written."""
        if self.whole:
            return min(max(round(value), int(self.low)), int(self.high))
        return min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high)


@dataclass(frozen=True)
class Tried:
    """A trial that is known. values: as they are written, by option; loss: None where there is none yet; failed: for ever."""

    values: Mapping[str, str]
    loss: float | None
    failed: bool


def draw(search: SearchConfig, number: int, tried: Sequence[Tried] = ()) -> dict[str, Any]:
    """The values of a trial, by option."""
    if search.kind == "optuna":
        return _proposed(search, number, tried)
    import numpy as np  # recipes are read without

    random = np.random.default_rng((search.seed, number))
    found: dict[str, Any] = {}
    for option, given in search.space.items():
        if not isinstance(given, Mapping):
            found[option] = given[int(random.integers(len(given)))]
            continue
        dimension = Range.of(given)
        ends = (dimension.low, dimension.high + dimension.whole)  # every whole number is as likely
        share = random.random()
        if dimension.log:
            value = math.exp(math.log(ends[0]) + share * (math.log(ends[1]) - math.log(ends[0])))
        else:
            value = ends[0] + share * (ends[1] - ends[0])
        found[option] = dimension.rounded(math.floor(value) if dimension.whole else value)
    return found


def _proposed(search: SearchConfig, number: int, tried: Sequence[Tried]) -> dict[str, Any]:
    """Optuna's tree-structured Parzen estimator, told of all that is known; trials in progress count as poor ones, so that
    others look elsewhere."""
    import numpy as np

    try:
        import optuna
    except ImportError as error:
        raise SweepError(
            "sweep.search.kind=optuna: needs Optuna, which is not installed; `pip install 'triaxis[search]'`, or choose "
            "sweep.search.kind=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {option: _distribution(given) for option, given in search.space.items()}
    seed = int(np.random.SeedSequence((search.seed, number)).generate_state(1)[0])
    first = max(3, min(10, search.trials // 3))  # drawn at random, before there is something to learn from
    sampler = optuna.samplers.TPESampler(n_startup_trials=first, constant_liar=True, seed=seed)
    study = optuna.create_study(sampler=sampler)
    states = optuna.trial.TrialState
    for one in tried:
        known = one.loss is not None and math.isfinite(one.loss)
        state = states.COMPLETE if known else states.FAIL if one.failed or one.loss is not None else states.RUNNING
        values = {option: _read(given, one.values[option]) for option, given in search.space.items()}
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=values, distributions=space, value=one.loss if known else None
            )
        )
    asked = study.ask(space).params
    return {
        option: Range.of(given).rounded(asked[option]) if isinstance(given, Mapping) else given[asked[option]]
        for option, given in search.space.items()
    }


def _distribution(given: Any) -> Any:
    import optuna

    if not isinstance(given, Mapping):
        return optuna.distributions.CategoricalDistribution(range(len(given)))  # places: values may be of any kind
    dimension = Range.of(given)
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _read(given: Any, text: str) -> Any:
    """A value as Optuna has it, from how it was written; the first of those that are written alike."""
    if not isinstance(given, Mapping):
        return [written(value) for value in given].index(text)
    return int(text) if Range.of(given).whole else float(text)


def written(value: Any) -> str:
    """A value as an override has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
