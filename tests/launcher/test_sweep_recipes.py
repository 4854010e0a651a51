"""Ready sweeps: every run of each can be, differs from the others in its axis alone, and costs what its header says."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from launcher.check import check_recipe, with_vocabulary
from launcher.compose import RECIPES
from launcher.config import Recipe
from launcher.derive import flops_of, inner_parameters, settle
from launcher.submit import world_of
from launcher.sweep.halving import Halving, candidates_of
from launcher.sweep.points import Planned, Point, _composed, points_of, sweep_of
from launcher.sweep.store import Store
from launcher.sweep.trials import trial_point
from models.config import count_active_parameters, count_parameters

READY = ("isoflop", "token_budgets", "ladder", "rate_batch", "width_depth", "activations", "sparsity", "expert_counts")
READY += ("mixture_weights",)


def checked(point: Point) -> Recipe:
    recipe, world = world_of(settle(with_vocabulary(_composed(point, None), 1024)), "cpu")
    check_recipe(recipe, world, "cpu")
    return recipe


def runs_of(name: str) -> dict[tuple[str, ...], Recipe]:
    sweep, line = sweep_of([f"experiment={name}"])
    return {tuple(point.labels.values()): checked(point) for point in points_of(sweep, line)}


def spread(runs: dict[tuple[str, ...], Recipe], figure: Callable[[Recipe], float]) -> float:
    values = [figure(recipe) for recipe in runs.values()]
    return max(values) / min(values) - 1


def isoflop(runs: dict) -> None:
    assert len(runs) == 20
    for (budget, _), recipe in runs.items():
        assert flops_of(recipe) == pytest.approx(float(budget), rel=0.01)
    for size in ("16x2", "64x4"):  # one size differs in its tokens alone
        assert len({str(runs[budget, size].model) for budget in ("3e11", "8e11", "2e12", "5e12")}) == 1


def ladder(runs: dict) -> None:
    for (tokens, _), recipe in runs.items():
        ratio = recipe.train.tokens / count_parameters(recipe.model)
        assert ratio == pytest.approx({"0.5c": 10, "1c": 20}[tokens], rel=0.01)
        assert recipe.train.batch_tokens == pytest.approx(0.58 * recipe.train.tokens**0.571, rel=0.1)


def width_depth(runs: dict) -> None:
    assert spread(runs, lambda recipe: inner_parameters(recipe.model)) < 0.01


def activations(runs: dict) -> None:
    assert spread(runs, lambda recipe: count_parameters(recipe.model)) < 1e-4


def sparsity(runs: dict) -> None:
    assert spread(runs, lambda recipe: count_parameters(recipe.model)) == 0
    assert spread(runs, flops_of) < 0.01 and spread(runs, lambda recipe: count_active_parameters(recipe.model)) > 3


def expert_counts(runs: dict) -> None:
    assert spread(runs, lambda recipe: count_parameters(recipe.model)) > 7
    assert spread(runs, lambda recipe: count_active_parameters(recipe.model)) < 0.04, "the router alone"


def mixture_weights(runs: dict) -> None:
    for (tests,), recipe in runs.items():
        weights = {source.name: source.weight for source in recipe.data.sources}
        assert weights["tests"] == pytest.approx(float(tests)) and sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", READY)
def test_ready_sweeps(name: str) -> None:
    runs = runs_of(name)
    assert len({str((r.model, r.train, r.optimizer, r.data, r.seed)) for r in runs.values()}) == len(runs), (
        "no two are one"
    )
    check = globals().get(name)
    if check is not None:
        check(runs)
    header = (RECIPES / "experiment" / f"{name}.yaml").read_text().split("defaults:")[0]
    told = re.search(r"(\d+) runs, ([\d.]+e\d+) FLOP", " ".join(header.replace("\n#", " ").split()))
    assert told is not None and int(told[1]) == len(runs), header
    assert sum(map(flops_of, runs.values())) == pytest.approx(float(told[2]), rel=0.06)


def test_ready_searches(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sweep, line = sweep_of(["experiment=search_rate", "sweep.search.kind=random"])
    assert (
        checked(trial_point(sweep, 3, line))
        == checked(trial_point(sweep, 3, line))
        != checked(trial_point(sweep, 4, line))
    )
    sweep, line = sweep_of(["experiment=halving"])
    points = candidates_of(sweep, line)
    assert len(points) == sweep.search.trials == 16
    recipe = checked(points[0])
    cost = Halving(Store(tmp_path, create=True), sweep, None, print).cost([Planned(one, recipe) for one in points])
    assert (
        cost == pytest.approx((16 / 8 + 8 / 8 + 4 / 4 + 2 / 2) * flops_of(recipe)) == pytest.approx(1.04e13, rel=0.01)
    )
