"""Lines for pictures: losses at equal compute, and the best parameters over compute with their interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, Law
from launcher.laws.result import Fit

PROFILES = 6
POINTS = 60


def draw_lines(fit: Fit, law: Law, theta: np.ndarray, replicas: Sequence[dict[str, float]]) -> None:
    """Put lines of equal compute and the frontier into a fit of a law of N and D; budgets that were asked for are included."""
    if law.optimum is None or set(law.reads) != {"params", "tokens"}:
        return
    compute = fit.points["flops"]
    asked = [told["budget"] for told in fit.optima]
    fit.profiles = [_profile(fit, law, theta, budget) for budget in levels(compute)]
    low, high = min(compute.min(), *asked, np.inf), max(compute.max(), *asked, 0.0)
    fit.frontier = frontier(law, fit.coefficients, replicas, low, high, fit.level)


def levels(compute: np.ndarray) -> np.ndarray:
    """Budgets to draw: those that the runs have where they are few, else some between."""
    logs = np.sort(np.log10(compute))
    cuts = np.flatnonzero(np.diff(logs) > 0.1)
    groups = np.split(logs, cuts + 1)
    narrow = all(np.ptp(group) < 0.3 for group in groups)
    if narrow and len(groups) <= 9 and len(groups) * 3 <= len(logs):
        return np.array([10 ** np.median(group) for group in groups])
    return np.logspace(logs[0], logs[-1], PROFILES + 2)[1:-1]


def _profile(fit: Fit, law: Law, theta: np.ndarray, budget: float) -> dict[str, np.ndarray]:
    near = np.abs(np.log10(fit.points["flops"] / budget)) < 0.25
    params = fit.points["params"][near] if near.sum() > 1 else fit.points["params"]
    sizes = np.logspace(np.log10(params.min() / 1.5), np.log10(params.max() * 1.5), POINTS)
    tokens = budget / (FLOPS_PER_PARAMETER_TOKEN * sizes)
    loss = np.exp(law.predict(theta, {"params": sizes, "tokens": tokens})[0])
    return {"budget": np.array(budget), "params": sizes, "loss": loss}


def frontier(
    law: Law,
    coefficients: dict[str, float],
    replicas: Sequence[dict[str, float]],
    low: float,
    high: float,
    level: float,
) -> dict[str, np.ndarray]:
    """Best parameters and losses over compute, with the interval of the resamples: each of shape (POINTS,)."""
    assert law.optimum is not None
    budgets = np.logspace(np.log10(low), np.log10(high), POINTS)
    best = [law.optimum(coefficients, budget) for budget in budgets]
    found = {"flops": budgets, **{name: np.array([one[name] for one in best]) for name in ("params", "loss")}}
    if replicas:
        some = np.unique(np.linspace(0, POINTS - 1, 11).astype(int))  # the band is smooth: a few places are enough
        for name in ("params", "loss"):
            with np.errstate(all="ignore"):
                every = np.array([[law.optimum(one, budget)[name] for budget in budgets[some]] for one in replicas])
            span = np.quantile(every, [(1 - level) / 2, (1 + level) / 2], axis=0)
            for part, values in zip(("low", "high"), span, strict=True):
                found[f"{name}_{part}"] = np.exp(np.interp(np.log(budgets), np.log(budgets[some]), np.log(values)))
    return found
