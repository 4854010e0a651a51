"""Which of many layouts `make test` runs: few that show together what all of them show, one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import pytest
from _pytest.mark import ParameterSet

from tests.parallel.cases import Case
from tests.parallel.record_layouts import DEGREES, features

T = TypeVar("T")


def facets(case: Case) -> set[tuple[str, str]]:
    """What a layout shows: every option it sets, under its engine and on each of its axes; its engine on each axis."""
    told = [f"{name}={value}" for name, value in features(case)]
    told += [case.dialect, case.optimizer.name, case.precision.name]
    axes, engine = _axes(case), case.parallel.engine
    shown = {(one, place) for one in told for place in (engine, *axes)} | {(engine, axis) for axis in axes}
    return shown | ({(engine, "eight processes")} if case.world_size == 8 else set())


def plain_facets(case: Case) -> set[tuple[str, str]]:
    """What a layout shows of how state lies: axes, ZeRO stage and precision under its engine."""
    engine, zero = case.parallel.engine, f"zero {case.parallel.zero_stage}"
    return {(engine, one) for one in (*_axes(case), zero, case.precision.name)}


def _axes(case: Case) -> list[str]:
    return [name for name in DEGREES if getattr(case.parallel, name) > 1] or ["one process"]


def others_slow(cases: Sequence[T], quick: Sequence[T]) -> list[ParameterSet]:
    """Parameters of a test: the quick cases are run by `make test`, the others by `make test-all`."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]


def cover(cases: Sequence[T], shows: Callable[[T], set[Hashable]], cost: Callable[[T], float]) -> list[T]:
    """Of the cases those that show together what all show, for little: the one that adds most for its cost, again and again."""
    left, rest, chosen = set[Hashable]().union(*map(shows, cases)), list(cases), list[T]()
    while left:
        best = max(rest, key=lambda case: len(shows(case) & left) / cost(case))
        rest.remove(best)
        chosen.append(best)
        left -= shows(best)
    return [case for case in cases if case in chosen]
