"""Chinchilla's second approach: a parabola through the losses of each budget, a power law through their minima.

Hoffmann et al. 2022, arXiv 2203.15556, section 3.2. A parabola in log N is not the true profile, which is steeper towards small
models unless both exponents are equal: on grids that are wide or that lie off centre its minimum is shifted. How much so on
the grid at hand is worked out here from the third approach's law without noise, and told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from launcher.laws.allocation import complete, flops_each, powers_of, split
from launcher.laws.chinchilla import CHINCHILLA, optimum
from launcher.laws.columns import Measured, column_of, measure
from launcher.laws.engine import fit_best
from launcher.laws.fit import drop_top, predict_losses, problem_of, relative_errors
from launcher.laws.form import LawError
from launcher.laws.result import Fit, FitOptions, Told
from launcher.laws.table import Table

TOLD = Told(
    "isoflop",
    "Chinchilla, IsoFLOP profiles (approach 2)",
    "N_opt = k_N C^a, D_opt = k_D C^b at parabolas' minima",
    "Hoffmann et al. 2022, arXiv 2203.15556, section 3.2",
)
READS = ("params", "tokens", "flops")
WIDEST = 0.3  # decades that runs of one budget may span
SAME_BUDGET = 0.08  # decades between neighbours within which runs count as of one budget
BIASED = 0.03  # shift of the best size at the largest budget, or of the exponent, from which it is warned of


@dataclass(frozen=True)
class Profile:
    """Runs of one budget and the parabola a + b x + c x^2 through them, x = log N."""

    budget: float
    sizes: np.ndarray
    losses: np.ndarray
    curve: np.ndarray

    @property
    def params(self) -> float:
        """Where the parabola is lowest."""
        return float(np.exp(-self.curve[1] / (2 * self.curve[0])))

    @property
    def loss(self) -> float:
        """The parabola's lowest value."""
        return float(np.polyval(self.curve, np.log(self.params)))

    @property
    def trouble(self) -> str:
        """Why the minimum is not to be used; empty where it is."""
        if self.curve[0] <= 0:
            return "its losses do not bend upwards, so there is no lowest"
        if not self.sizes.min() <= self.params <= self.sizes.max():
            where = "below the smallest" if self.params < self.sizes.min() else "above the largest"
            return f"its lowest lies {where} of its sizes, {self.params:.3g}"
        return ""


def fit_isoflop(table: Table, given: Mapping[str, str], options: FitOptions) -> Fit:
    """Fit parabolas and the powers of compute through their minima."""
    table = table.where(options.where) if options.where else table
    measured = drop_top(measure(table, (*READS, "loss"), given), options.drop_top_losses)
    groups = budgets_of(measured, column_of(table, "profile", given, (), must=False))
    profiles = [one for one in map(parabola, groups) if one is not None]
    usable = [one for one in profiles if not one.trouble]
    if len(usable) < 2:
        raise LawError(_too_few(table, groups, profiles))
    notes = list(measured.notes)
    each = flops_each(measured.columns, notes)
    coefficients = _powers(usable, each)
    fit = Fit(
        TOLD.name, TOLD.title, TOLD.formula, TOLD.source, table.place, measured.named, len(measured), coefficients
    )
    fit.notes += notes
    fit.objective = float(
        sum(((np.polyval(one.curve, np.log(one.sizes)) - one.losses) ** 2).sum() for one in profiles) / 2
    )
    fit.objective_is = "sum of squares / 2 of the losses around the parabolas"
    fit.warnings += [f"budget {one.budget:.3g}: {one.trouble}; it is left out" for one in profiles if one.trouble]
    fit.points = {**measured.columns}
    fit.profiles = [_line(one) for one in profiles]
    fit.extra["profiles"] = [
        {"budget": one.budget, "runs": len(one.sizes), "params": one.params, "loss": one.loss, "used": not one.trouble}
        for one in profiles
        if one.curve[0] > 0
    ]
    complete(fit, _replicas(usable, options, each), options, np.array([one.budget for one in usable]))
    fit.held_out = _held_out(usable)
    _warn(fit, measured, usable, options)
    return fit


def budgets_of(measured: Measured, name: str | None = None) -> list[Measured]:
    """Runs by budget: those that agree in a column, else neighbours in compute closer than SAME_BUDGET."""
    if name is not None:
        labels = np.array([row.get(name, "") for row in measured.rows])
        named = [measured.only(labels == label) for label in np.unique(labels)]
        return sorted(named, key=lambda group: float(np.median(group.columns["flops"])))
    order = np.argsort(measured.columns["flops"])
    logs = np.log10(measured.columns["flops"][order])
    groups = np.split(order, np.flatnonzero(np.diff(logs) > SAME_BUDGET) + 1)
    for group in groups:
        decades = np.ptp(np.log10(measured.columns["flops"][group]))
        if decades > WIDEST:
            raise LawError(
                f"isoflop: the runs' compute comes in no budgets (runs without a gap between them span {decades:.1f} decades); "
                "name a column of budgets with --profile, or fit chinchilla"
            )
    masks = [np.isin(np.arange(len(measured)), group) for group in groups]
    return [measured.only(mask) for mask in masks]


def parabola(group: Measured) -> Profile | None:
    """The parabola of a budget; None where it has fewer than three sizes."""
    sizes, losses = group.columns["params"], group.columns["loss"]
    if len(np.unique(sizes)) < 3:
        return None
    budget = float(np.exp(np.log(group.columns["flops"]).mean()))
    return Profile(budget, sizes, losses, np.polyfit(np.log(sizes), losses, 2))


def _too_few(table: Table, groups: Sequence[Measured], profiles: Sequence[Profile]) -> str:
    told = "; ".join(f"{one.budget:.3g}: {one.trouble}" for one in profiles if one.trouble)
    return (
        f"isoflop: {table.place} has {len(groups)} budgets, {len(profiles)} of them with three sizes or more, and fewer than "
        f"two with a lowest loss within their sizes{' (' + told + ')' if told else ''}; run other sizes, or fit chinchilla, "
        "which needs no profiles"
    )


def _powers(profiles: Sequence[Profile], each: float = 6.0) -> dict[str, float]:
    flops, params, losses = (
        np.array([getattr(one, name) for one in profiles]) for name in ("budget", "params", "loss")
    )
    return powers_of(flops, params, losses, each)


def _replicas(profiles: Sequence[Profile], options: FitOptions, each: float) -> list[dict[str, float]]:
    """Powers of resamples: the runs of each budget are drawn anew from the parabola and its residuals.

    Residuals are widened for the three coefficients that each parabola has taken from them (Davison and Hinkley 1997, 6.2)."""
    if min(len(one.sizes) for one in profiles) < 4:
        return []
    random, found = np.random.default_rng(options.seed), []
    for _ in range(options.bootstraps):
        drawn = []
        for one in profiles:
            expected = np.polyval(one.curve, np.log(one.sizes))
            away = (one.losses - expected) * np.sqrt(len(one.sizes) / (len(one.sizes) - 3))
            losses = expected + random.choice(away - away.mean(), size=len(away))
            drawn.append(Profile(one.budget, one.sizes, losses, np.polyfit(np.log(one.sizes), losses, 2)))
        good = [one for one in drawn if one.curve[0] > 0]
        if len(good) >= 2:
            found.append(_powers(good, each))
    return found


def _held_out(profiles: Sequence[Profile]) -> dict[str, object] | None:
    """The largest budget's optimum and loss, foretold from the other budgets."""
    if len(profiles) < 3:
        return None
    last = max(profiles, key=lambda one: one.budget)
    powers = _powers([one for one in profiles if one is not last])
    told = split(powers, last.budget)
    error = abs(told["loss"] / last.loss - 1)
    return {
        "how": f"the lowest loss at the largest budget, {last.budget:.3g}, from the others",
        "rows": len(last.sizes), "fitted": len(profiles) - 1, "mean": error, "max": error,
        "params": told["params"], "params_found": last.params,
    }  # fmt: skip


def _line(one: Profile) -> dict[str, np.ndarray]:
    sizes = np.geomspace(one.sizes.min() / 1.15, one.sizes.max() * 1.15, 60)
    found = {"budget": np.array(one.budget), "params": sizes, "loss": np.polyval(one.curve, np.log(sizes))}
    if not one.trouble:
        found |= {"best_params": np.array(one.params), "best_loss": np.array(one.loss)}
    return found


def _warn(fit: Fit, measured: Measured, usable: Sequence[Profile], options: FitOptions) -> None:
    """Few runs a budget, few budgets, and the bias of parabolas on this grid."""
    least = min(len(one.sizes) for one in usable)
    if least < 4:
        fit.warnings.append(
            "a budget has three runs alone: its parabola passes through all of them, so there are no intervals; run five"
        )
    if len(usable) < 3:
        fit.warnings.append(f"{len(usable)} budgets: the exponents are a line through two points")
    if (bias := grid_bias(measured, usable)) is not None:
        fit.extra["grid_bias"] = bias
        worst = max(abs(bias["exponent_shift"]), abs(bias["params_shift"]))
        if worst > BIASED:
            fit.warnings.append(
                f"parabolas on this grid (sizes span a factor of {bias['span']:.3g} at a budget) shift the optimum even "
                f"without noise: exponent {bias['exponent_shift']:+.3f}, best size at the largest budget "
                f"{100 * bias['params_shift']:+.1f} % against the law that `triaxis fit chinchilla` finds here; use narrower "
                "grids around the optimum, or that law"
            )


def grid_bias(measured: Measured, usable: Sequence[Profile]) -> dict[str, float] | None:
    """What parabolas do to losses without noise on the same sizes and budgets, by the third approach's law of these runs.

    After E. Czech's observation that approach 2 misplaces optima of exact synthetic laws. None where there are too few runs.
    """
    if len(measured) < 8:
        return None
    law, _ = fit_best(problem_of(CHINCHILLA, measured, {}))
    exact = dict(zip(CHINCHILLA.names, map(float, CHINCHILLA.printed(law)), strict=True))
    if relative_errors(predict_losses(CHINCHILLA, law, measured), measured.columns["loss"])["mean"] > 0.05:
        return None
    clean, tops = [], []
    for one in usable:
        tokens = one.budget / (6 * one.sizes)
        losses = np.exp(CHINCHILLA.predict(law, {"params": one.sizes, "tokens": tokens})[0])
        profile = Profile(one.budget, one.sizes, losses, np.polyfit(np.log(one.sizes), losses, 2))
        if profile.curve[0] > 0:
            clean.append(profile)
            tops.append(optimum(exact, one.budget)["params"])
    if len(clean) < 2 or not np.isfinite(tops).all() or min(tops) <= 0:
        return None
    powers = _powers(clean)
    true = powers_of(np.array([one.budget for one in clean]), np.array(tops), np.ones(len(tops)))
    span = float(np.median([one.sizes.max() / one.sizes.min() for one in clean]))
    return {
        "span": span,
        "exponent_shift": powers["a"] - true["a"],
        "params_shift": float(clean[-1].params / tops[-1] - 1),
    }
