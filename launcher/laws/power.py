"""The power schedule's exponents: the best learning rate of a batch falls with the tokens trained on.

Shen et al. 2024, Power Scheduler, arXiv 2408.13359: rate(T) = min(rate_max, batch * a * T^b), so the ratio of the best rate to
the batch is a power of tokens alone. Batches are counted as their column counts them; a follows that unit.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from launcher.laws.columns import Measured, measure
from launcher.laws.form import LawError
from launcher.laws.result import Fit, FitOptions, Told, interval
from launcher.laws.step import near_best
from launcher.laws.table import Table

TOLD = Told(
    "power",
    "Power schedule's exponents",
    "rate = batch * a * T^b",
    "Shen et al. 2024, arXiv 2408.13359",
)
READS = ("tokens", "rate", "batch")


def fit_power(table: Table, given: Mapping[str, str], options: FitOptions) -> Fit:
    """Regress log(rate / batch) on log(tokens) over the near-best runs of each (tokens, batch)."""
    table = table.where(options.where) if options.where else table
    measured = measure(table, READS, given, optional=("loss",))
    kept = _best(measured, options.within) if "loss" in measured.columns else measured
    tokens, ratio = np.log(kept.columns["tokens"]), np.log(kept.columns["rate"] / kept.columns["batch"])
    if len(set(tokens.tolist())) < 3:
        raise LawError(f"power: {len(set(tokens.tolist()))} token counts; three or more are needed for an exponent")
    b, log_a = np.polyfit(tokens, ratio, 1)
    fit = Fit(
        TOLD.name,
        TOLD.title,
        TOLD.formula,
        TOLD.source,
        table.place,
        kept.named,
        len(kept),
        {"a": float(np.exp(log_a)), "b": float(b)},
    )
    fit.notes += measured.notes
    fit.objective = float(((np.polyval((b, log_a), tokens) - ratio) ** 2).sum() / 2)
    fit.objective_is = "sum of squares / 2 of log(rate / batch)"
    fit.held_out = _longest(tokens, ratio)
    _resample(fit, kept, options)
    fit.against = {"learning rate": (kept.columns["rate"],
                                     kept.columns["batch"] * np.exp(np.polyval((b, log_a), tokens)))}  # fmt: skip
    away = np.corrcoef(np.polyval((b, log_a), tokens) - ratio, np.log(kept.columns["batch"]))[0, 1]
    if np.isfinite(away) and abs(away) > 0.5:
        fit.warnings.append(
            f"what the law misses goes with the batch (correlation {away:+.2f}): best rates do not grow with it in proportion"
        )
    return fit


def _best(measured: Measured, within: float) -> Measured:
    """The near-best runs of each pair of tokens and batch."""
    keep = np.zeros(len(measured), dtype=bool)
    pairs = np.stack([measured.columns["tokens"], measured.columns["batch"]], axis=1)
    for pair in np.unique(pairs, axis=0):
        mask = (pairs == pair).all(axis=1)
        keep[np.flatnonzero(mask)[near_best(measured.columns["loss"][mask], within)]] = True
    return measured.only(keep)


def _longest(tokens: np.ndarray, ratio: np.ndarray) -> dict[str, object] | None:
    """Error in the rate at the longest runs, from the others."""
    last = tokens == tokens.max()
    if len(set(tokens[~last].tolist())) < 2:
        return None
    away = np.abs(np.exp(np.polyval(np.polyfit(tokens[~last], ratio[~last], 1), tokens[last]) - ratio[last]) - 1)
    return {"how": "learning rates at the most tokens, from the others", "rows": int(last.sum()), "fitted": int((~last).sum()),
            "mean": float(away.mean()), "max": float(away.max())}  # fmt: skip


def _resample(fit: Fit, kept: Measured, options: FitOptions) -> None:
    random, count = np.random.default_rng(options.seed), len(kept)
    tokens, ratio = np.log(kept.columns["tokens"]), np.log(kept.columns["rate"] / kept.columns["batch"])
    found = []
    for _ in range(options.bootstraps):
        rows = random.integers(count, size=count)
        if len(set(tokens[rows].tolist())) > 1:
            found.append(np.polyfit(tokens[rows], ratio[rows], 1))
    if found:
        slopes = np.array(found)
        fit.replicas = {"a": np.exp(slopes[:, 1]), "b": slopes[:, 0]}
        fit.intervals = {name: interval(values, options.level) for name, values in fit.replicas.items()}
        fit.level, fit.bootstraps = options.level, len(found)
