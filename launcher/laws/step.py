"""Learning rate and batch as powers of parameters and tokens: the Step Law, from a grid of runs at each (N, D).

Li et al. 2025, Predictable Scale part I, arXiv 2503.04715, equation 1: rate = c N^alpha D^beta, batch = d D^gamma tokens, N
without embeddings, the rate falling to 1e-5. The basin is broad: regressions of near-best runs scatter in their exponents (the
released grid's do not give the published ones), while the loss that a law costs hardly changes. So what is told besides the
coefficients is the penalty: by how much the run nearest to the law's choice lies above the best of its (N, D).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.laws.chinchilla import REPLICATED
from launcher.laws.chinchilla import optimum as best_split
from launcher.laws.columns import Measured, measure
from launcher.laws.fit import drop_top, extrapolation
from launcher.laws.form import LawError
from launcher.laws.result import Fit, FitOptions, Told, interval
from launcher.laws.table import Table

TOLD = Told(
    "step",
    "Learning rate and batch (Step Law)",
    "rate = c N^alpha D^beta, batch = d D^gamma tokens",
    "Li et al. 2025, arXiv 2503.04715, equation 1",
)
READS = ("params", "tokens", "rate", "batch")
PUBLISHED = {"c": 1.79, "alpha": -0.713, "beta": 0.307, "d": 0.58, "gamma": 0.571}
RANGE = {"params": (6e7, 1.1e9), "tokens": (2e9, 1e11)}
"""What the published law was measured on (section 4)."""
FINAL_RATE = 1e-5
RESAMPLED = {"lr_intercept": "c", "lr_coefN": "alpha", "lr_coefD": "beta", "bs_intercept": "d", "bs_coefD": "gamma"}
"""Columns of the released table of fits to resamples, and what they are here."""
RELEASED = {
    "params": ("N",),
    "tokens": ("D",),
    "rate": ("lr",),
    "batch": ("bs",),
    "loss": ("smooth loss",),
    "steps": ("ti",),
}
"""Columns of the released runs, which go before others that could be meant."""
RELEASED_SEQUENCE = 2048  # tokens of a sequence in the released runs, whose batches are in sequences
SMALL_BATCH = 16_384  # a batch column with a smaller median counts sequences


def rate_and_batch(law: Mapping[str, float], params: float, tokens: float) -> tuple[float, float]:
    """(peak learning rate, tokens of a batch) for N without embeddings and D."""
    return (
        law["c"] * params ** law["alpha"] * tokens ** law["beta"],
        law["d"] * tokens ** law["gamma"],
    )


@dataclass(frozen=True)
class Group:
    """The runs of one (N, D). rates, batches (tokens), losses: (n,)."""

    params: float
    tokens: float
    rates: np.ndarray
    batches: np.ndarray
    losses: np.ndarray

    def penalty(self, law: Mapping[str, float]) -> float:
        """Share by which the run nearest to the law's choice, in logarithms of both, lies above the best."""
        rate, batch = rate_and_batch(law, self.params, self.tokens)
        away = np.log(self.rates / rate) ** 2 + np.log(self.batches / batch) ** 2
        return float(self.losses[int(np.argmin(away))] / self.losses.min() - 1)


def fit_step(table: Table, given: Mapping[str, str], options: FitOptions) -> Fit:
    """Fit a grid of runs, or take the mean of a table of resampled fits."""
    table = table.where(options.where) if options.where else table
    if set(RESAMPLED) <= set(table.names):
        return _of_resamples(table, options)
    measured = drop_top(measure(table, (*READS, "loss"), given, RELEASED, ("steps",)), options.drop_top_losses)
    notes = list(measured.notes)
    measured.columns["batch"] = batch_tokens(measured, options.sequence_length, notes)
    groups = groups_of(measured)
    rows = [(g, near_best(g.losses, options.within)) for g in groups]
    coefficients = regress(rows)
    fit = _new(table, measured.named, sum(int(mask.sum()) for _, mask in rows), coefficients)
    share = f"{100 * options.within:g} %"
    fit.notes += notes
    fit.notes.append(
        f"{len(groups)} pairs of (N, D); the {fit.rows} of {len(measured)} runs within {share} of their best are fitted"
    )
    fit.extra["penalty"] = penalties(groups, coefficients)
    fit.extra["penalty_of_the_published_law"] = penalties(groups, PUBLISHED)
    fit.held_out = _left_out(rows)
    _resample(fit, rows, options)
    _against(fit, rows, coefficients)
    fit.points = {role: measured.columns[role] for role in ("params", "tokens", "flops", "loss")}
    _optima(fit, measured, options)
    fit.warnings += _warnings(groups, rows)
    return fit


def _new(table: Table, named: dict[str, str], rows: int, coefficients: dict[str, float]) -> Fit:
    return Fit(TOLD.name, TOLD.title, TOLD.formula, TOLD.source, table.place, named, rows, coefficients)


def batch_tokens(measured: Measured, sequence: int, notes: list[str]) -> np.ndarray:
    """Batches in tokens: by the sequence length given, by D / steps, or as the released files count them."""
    batch, name = measured.columns["batch"], measured.named["batch"]
    if sequence:
        notes.append(f"{name} counts sequences of {sequence} tokens, as --sequence-length says")
        return batch * sequence
    steps = measured.columns.get("steps")
    if steps is not None and np.isfinite(steps).all():
        ratio = float(np.median(measured.columns["tokens"] / (steps * batch)))
        if 0.9 < ratio < 1.1:
            return batch
        whole = round(ratio) if abs(ratio / round(ratio, -1) - 1) > 0.02 else 2 ** round(np.log2(ratio))
        notes.append(f"{name} counts sequences of {whole} tokens: so many tokens a step and sequence were trained on")
        return batch * whole
    if float(np.median(batch)) >= SMALL_BATCH:
        return batch
    notes.append(
        f"{name} is taken to count sequences of {RELEASED_SEQUENCE} tokens, as in the released runs; --sequence-length says "
        "otherwise"
    )
    return batch * RELEASED_SEQUENCE


def groups_of(measured: Measured) -> list[Group]:
    """Pairs of (N, D) with at least two rates and two batches."""
    n, d = measured.columns["params"], measured.columns["tokens"]
    found = []
    for params, tokens in sorted(set(zip(n.tolist(), d.tolist(), strict=True))):
        part = measured.only((n == params) & (d == tokens)).columns
        if len(set(part["rate"])) > 1 and len(set(part["batch"])) > 1:
            found.append(Group(params, tokens, part["rate"], part["batch"], part["loss"]))
    if len(found) < 3:
        raise LawError(
            f"step: {len(found)} pairs of (N, D) have runs at several learning rates and batches; three or more are needed"
        )
    return found


def near_best(losses: np.ndarray, within: float) -> np.ndarray:
    """Runs whose loss is at most a share above the lowest."""
    return losses <= losses.min() * (1 + within)


def regress(rows: list[tuple[Group, np.ndarray]]) -> dict[str, float]:
    """Least squares in logarithms over the runs of masks."""
    counts = [int(mask.sum()) for _, mask in rows]
    n, d = (np.log(np.repeat([getattr(g, name) for g, _ in rows], counts)) for name in ("params", "tokens"))
    rate, batch = (
        np.log(np.concatenate([getattr(g, name)[mask] for g, mask in rows])) for name in ("rates", "batches")
    )
    one = np.ones_like(n)
    c, alpha, beta = np.linalg.lstsq(np.stack([one, n, d], axis=1), rate, rcond=None)[0]
    level, gamma = np.linalg.lstsq(np.stack([one, d], axis=1), batch, rcond=None)[0]
    return {
        "c": float(np.exp(c)),
        "alpha": float(alpha),
        "beta": float(beta),
        "d": float(np.exp(level)),
        "gamma": float(gamma),
    }


def penalties(groups: list[Group], law: Mapping[str, float]) -> dict[str, float]:
    """Mean and largest penalty over groups, as shares of the loss."""
    found = [group.penalty(law) for group in groups]
    return {"mean": float(np.mean(found)), "max": float(np.max(found)), "groups": len(found)}


def _left_out(rows: list[tuple[Group, np.ndarray]]) -> dict[str, object] | None:
    """Penalties of pairs by a law of the others."""
    if len(rows) < 4:
        return None
    found = [one[0].penalty(regress([other for other in rows if other is not one])) for one in rows]
    return {"how": "penalties of each pair (N, D) by a law of the others", "rows": len(found), "fitted": len(found) - 1,
            "mean": float(np.mean(found)), "max": float(np.max(found))}  # fmt: skip


def _resample(fit: Fit, rows: list[tuple[Group, np.ndarray]], options: FitOptions) -> None:
    """Intervals over resampled pairs of (N, D): runs of one pair are no independent evidence."""
    random, found = np.random.default_rng(options.seed), []
    for _ in range(options.bootstraps):
        drawn = [rows[index] for index in random.integers(len(rows), size=len(rows))]
        if len({(g.params, g.tokens) for g, _ in drawn}) > 2:
            found.append(regress(drawn))
    if found:
        fit.replicas = {name: np.array([one[name] for one in found]) for name in fit.coefficients}
        fit.intervals = {name: interval(values, options.level) for name, values in fit.replicas.items()}
        fit.level, fit.bootstraps = options.level, len(found)


def _of_resamples(table: Table, options: FitOptions) -> Fit:
    """The mean of fits to resamples, as the released table holds them: of logarithms for c and d."""
    values = {mine: table.numbers(theirs) for theirs, mine in RESAMPLED.items()}
    logs = ("c", "d")
    means = {name: float(np.exp(column.mean()) if name in logs else column.mean()) for name, column in values.items()}
    fit = _new(table, {mine: theirs for theirs, mine in RESAMPLED.items()}, len(table.rows), means)
    fit.replicas = {name: np.exp(column) if name in logs else column for name, column in values.items()}
    fit.intervals = {name: interval(column, options.level) for name, column in fit.replicas.items()}
    fit.level, fit.bootstraps = options.level, len(table.rows)
    fit.notes.append("the rows are fits to resamples: coefficients are their means, of c and d the means of logarithms")
    _optima(fit, None, options)
    return fit


def _against(fit: Fit, rows: list[tuple[Group, np.ndarray]], law: Mapping[str, float]) -> None:
    """Near-best rates and batches beside what the law says."""
    pairs: dict[str, list[tuple[float, float]]] = {"learning rate": [], "batch, tokens": []}
    for group, mask in rows:
        rate, batch = rate_and_batch(law, group.params, group.tokens)
        pairs["learning rate"] += [(float(one), rate) for one in group.rates[mask]]
        pairs["batch, tokens"] += [(float(one), batch) for one in group.batches[mask]]
    fit.against = {
        name: (np.array([a for a, _ in found]), np.array([b for _, b in found])) for name, found in pairs.items()
    }


def _optima(fit: Fit, measured: Measured | None, options: FitOptions) -> None:
    """Rate and batch at the split that Chinchilla's data give a budget (Besiroglu et al. 2024)."""
    for budget in options.budget:
        if budget <= 0:
            raise LawError(f"--budget={budget:g}: must be above 0")
        split = best_split(REPLICATED, budget)
        rate, batch = rate_and_batch(fit.coefficients, split["params"], split["tokens"])
        told: dict[str, Any] = {
            "budget": budget,
            "params": split["params"],
            "tokens": split["tokens"],
            "learning_rate": rate,
            "batch": batch,
        }
        if fit.replicas:
            names = list(fit.replicas)
            made = [dict(zip(names, row, strict=True)) for row in np.stack(list(fit.replicas.values()), axis=1)]
            both = np.array([rate_and_batch(one, split["params"], split["tokens"]) for one in made])
            told["intervals"] = {
                name: interval(both[:, index], fit.level) for index, name in enumerate(("learning_rate", "batch"))
            }
        told["decades_beyond_data"] = extrapolation(fit, told, measured) if measured else 0.0
        fit.optima.append(told)
        fit.notes.append(f"budget {budget:.3g}: its parameters and tokens are Chinchilla's (arXiv 2404.10102)")


def _warnings(groups: list[Group], rows: list[tuple[Group, np.ndarray]]) -> list[str]:
    """Bests at the border of their grid, and too few pairs."""
    found = []
    border = 0
    for group in groups:
        best = int(np.argmin(group.losses))
        border += any(values[best] in (values.min(), values.max()) for values in (group.rates, group.batches))
    if border:
        found.append(f"the best run of {border} of {len(groups)} pairs lies at the border of its grid; widen it there")
    if len({g.params for g, _ in rows}) < 3 or len({g.tokens for g, _ in rows}) < 3:
        found.append("fewer than three sizes or three token counts: the exponents are hardly fixed")
    return found
