"""Chinchilla's first approach: the lower envelope of training curves, and the sizes that lie on it.

Hoffmann et al. 2022, arXiv 2203.15556, section 3.1: at each of 1,500 budgets the run with the lowest loss of all that have come
as far, and powers of compute through its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launcher.laws.allocation import complete, powers_of
from launcher.laws.columns import DIRECTORY, ROLES, measure
from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, LawError
from launcher.laws.result import Fit, FitOptions, Told
from launcher.laws.table import Table

TOLD = Told(
    "envelope",
    "Chinchilla, envelope of training curves (approach 1)",
    "N_opt = k_N C^a, D_opt = k_D C^b along the lowest curves",
    "Hoffmann et al. 2022, arXiv 2203.15556, section 3.1",
)
READS = ("params", "tokens")
BUDGETS = 1500  # places along the envelope, as published
LEAST_POINTS = 5  # of a curve


@dataclass(frozen=True)
class Curve:
    """A run's smoothed losses over compute. params: of the run."""

    name: str
    params: float
    flops: np.ndarray
    losses: np.ndarray

    def at(self, budgets: np.ndarray) -> np.ndarray:
        """Losses at budgets, between its points; infinite outside."""
        values = np.interp(np.log(budgets), np.log(self.flops), self.losses)
        return np.where((budgets >= self.flops[0]) & (budgets <= self.flops[-1]), values, np.inf)


def fit_envelope(table: Table, given: Mapping[str, str], options: FitOptions) -> Fit:
    """The envelope of a sweep's curves, or of a table with many rows a run."""
    table = table.where(options.where) if options.where else table
    curves, named = curves_of(table, given)
    sizes = {curve.params for curve in curves}
    if len(sizes) < 3:
        raise LawError(f"envelope: {table.place} has curves of {len(sizes)} sizes; three or more are needed")
    flops, params, losses = envelope(curves)
    fit = Fit(
        TOLD.name,
        TOLD.title,
        TOLD.formula,
        TOLD.source,
        table.place,
        named,
        len(curves),
        powers_of(flops, params, losses),
    )
    fit.extra["sizes_on_the_envelope"] = len(np.unique(params))
    fit.points = {"flops": flops, "params": params, "loss": losses}
    complete(fit, _replicas(curves, options), options, flops)
    fit.profiles = []
    fit.warnings += _warnings(curves, params)
    return fit


def curves_of(table: Table, given: Mapping[str, str]) -> tuple[list[Curve], dict[str, str]]:
    """(curves, columns): from metrics.jsonl of our runs, else rows of a table that share a run or a size."""
    from launcher.laws.runs import curve

    if DIRECTORY in table.names and "tokens" not in given:
        measured = measure(table, ("params",), given)
        runs = [(row.get("name", row[DIRECTORY]), *curve(Path(row[DIRECTORY]))) for row in measured.rows]
        made = [
            _curve(name, size, np.array(tokens), np.array(losses))
            for (name, tokens, losses), size in zip(runs, measured.columns["params"], strict=True)
        ]
        return [one for one in made if one is not None], {
            **measured.named,
            "loss": "loss of each step",
            "tokens": "tokens",
        }
    measured = measure(table, (*READS, "loss"), given)
    role = given.get("run") or next((name for name in table.names if name.lower() in ROLES["run"].names), "")
    if role and role not in table.names:
        raise LawError(f"--run={role}: {table.place} has no such column; there are {', '.join(table.names)}")
    keys = np.array([row.get(role, "") for row in measured.rows] if role else measured.columns["params"].astype(str))
    found = []
    for key in dict.fromkeys(keys):
        part = measured.only(keys == key)
        one = _curve(str(key), float(part.columns["params"][0]), part.columns["tokens"], part.columns["loss"])
        found += [one] if one is not None else []
    if not found:
        raise LawError(
            f"envelope: {table.place} has no run with {LEAST_POINTS} points of its curve; give a line a point, and --run for "
            "the column that names runs"
        )
    return found, {**measured.named, **({"run": role} if role else {})}


def _curve(name: str, params: float, tokens: np.ndarray, losses: np.ndarray) -> Curve | None:
    from launcher.report.curves import smooth

    order = np.argsort(tokens)
    tokens, losses = tokens[order], losses[order]
    first = (
        np.concatenate([[True], np.diff(tokens) > 0]) & (tokens > 0) & np.isfinite(losses)
        if len(tokens)
        else tokens > 0
    )
    tokens, losses = tokens[first], losses[first]
    if len(tokens) < LEAST_POINTS:
        return None
    smoothed = smooth(losses) if len(losses) >= 50 else losses
    return Curve(name, params, FLOPS_PER_PARAMETER_TOKEN * params * tokens, smoothed)


def envelope(curves: list[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(budgets, parameters of the lowest curve, its loss), where at least two sizes have come as far.

    Where the smallest or the largest size is the lowest, a size that was not run might be lower: those budgets are left out, as
    long as two sizes remain.
    """
    budgets = np.geomspace(min(one.flops[0] for one in curves), max(one.flops[-1] for one in curves), BUDGETS)
    losses = np.stack([one.at(budgets) for one in curves])
    sizes = np.array([one.params for one in curves])
    several = np.array([len(np.unique(sizes[np.isfinite(column)])) > 1 for column in losses.T])
    if several.sum() < 2:
        raise LawError("envelope: no budget was reached by runs of two sizes; train small models for longer")
    best = sizes[losses[:, several].argmin(axis=0)]
    inner = (best > sizes.min()) & (best < sizes.max())
    kept = inner if len(np.unique(best[inner])) > 1 else np.ones_like(inner)
    return budgets[several][kept], best[kept], losses[:, several].min(axis=0)[kept]


def _replicas(curves: list[Curve], options: FitOptions) -> list[dict[str, float]]:
    """Powers of resamples of whole curves: points of one curve are not independent of one another."""
    random, found = np.random.default_rng(options.seed), []
    for _ in range(options.bootstraps):
        drawn = [curves[index] for index in random.integers(len(curves), size=len(curves))]
        if len({one.params for one in drawn}) > 2:
            try:
                found.append(powers_of(*envelope(drawn)))
            except LawError:
                continue
    return found


def _warnings(curves: list[Curve], params: np.ndarray) -> list[str]:
    """Few sizes on the envelope; and that curves under a longer schedule lie too high."""
    found = []
    used = len(np.unique(params))
    if used < 3:
        found.append(f"{used} sizes alone lie on the envelope: the exponents say little; add sizes, or train longer")
    found.append(
        "points before a curve's end lie too high where its learning rate was still to fall (Hoffmann et al., appendix B): "
        "the envelope then favours large models; runs with schedules of several lengths are surer"
    )
    return found
