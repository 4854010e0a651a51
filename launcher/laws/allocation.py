"""Powers of compute from optima at several budgets: what Chinchilla's first two approaches have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, LawError
from launcher.laws.result import Fit, FitOptions, interval

EXPONENTS = np.linspace(0.01, 0.8, 80)  # of the loss in compute, among which the best is taken
THINNED = 60  # places of the frontier that its loss is fitted to


def powers_of(
    flops: np.ndarray, params: np.ndarray, losses: np.ndarray, each: float = FLOPS_PER_PARAMETER_TOKEN
) -> dict[str, float]:
    """N_opt = k_N C^a, D_opt = k_D C^b with b = 1 - a, least squares in logarithms; L_opt = E + k_L C^-c, see `_loss`.

    each: FLOPs of a parameter and a token, by which k_D follows from k_N. losses: at the optima.
    """
    a, log_k = np.polyfit(np.log(flops), np.log(params), 1)
    k = float(np.exp(log_k))
    return {"k_N": k, "a": float(a), "k_D": 1 / (each * k), "b": 1 - float(a), **_loss(flops, losses)}


def _loss(flops: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """L = E + k_L C^-c by least squares, c from EXPONENTS; of two or three budgets with E = 0, the line in logarithms."""
    if len(flops) < 4:
        slope, level = np.polyfit(np.log(flops), np.log(losses), 1)
        return {"E": 0.0, "k_L": float(np.exp(level)), "c": float(-slope)}
    some = np.unique(np.linspace(0, len(flops) - 1, THINNED).astype(int))
    x = np.exp(-EXPONENTS[:, None] * np.log(flops[some] / flops[some].max()))  # (exponents, places)
    away, y = x - x.mean(axis=1, keepdims=True), losses[some]
    slope = (away @ (y - y.mean())) / (away**2).sum(axis=1)
    level = y.mean() - slope * x.mean(axis=1)
    plain = (x @ y) / (x**2).sum(axis=1)  # without a constant, where that would be below nothing
    slope, level = np.where(level > 0, slope, plain), np.where(level > 0, level, 0.0)
    best = int(np.argmin(((level[:, None] + slope[:, None] * x - y) ** 2).sum(axis=1)))
    c = float(EXPONENTS[best])
    return {"E": float(level[best]), "k_L": float(slope[best] * flops[some].max() ** c), "c": c}


def flops_each(columns: Mapping[str, np.ndarray], notes: list[str]) -> float:
    """FLOPs of a parameter and a token in these runs: 6, unless their own count of FLOPs says otherwise."""
    ratio = float(np.exp(np.log(columns["flops"] / (columns["params"] * columns["tokens"])).mean()))
    if abs(ratio / FLOPS_PER_PARAMETER_TOKEN - 1) < 0.02:
        return FLOPS_PER_PARAMETER_TOKEN
    notes.append(f"FLOPs are {ratio:.3g} N D in these runs, not 6 N D; optimal tokens are counted by that")
    return ratio


def split(powers: Mapping[str, float], budget: float) -> dict[str, float]:
    """Best parameters and tokens for a budget; the loss along the frontier's power law."""
    return {
        "params": powers["k_N"] * budget ** powers["a"],
        "tokens": powers["k_D"] * budget ** powers["b"],
        "loss": powers["E"] + powers["k_L"] * budget ** -powers["c"],
    }


def complete(fit: Fit, replicas: list[dict[str, float]], options: FitOptions, compute: np.ndarray) -> None:
    """Intervals, optima and the frontier's line of a fit whose coefficients are powers of compute."""
    if replicas:
        fit.replicas = {name: np.array([one[name] for one in replicas]) for name in fit.coefficients}
        fit.level, fit.bootstraps = options.level, len(replicas)
        fit.intervals = {name: interval(values, options.level) for name, values in fit.replicas.items()}
    for budget in options.budget:
        if budget <= 0:
            raise LawError(f"--budget={budget:g}: must be above 0")
        best = split(fit.coefficients, budget)
        told: dict[str, Any] = {"budget": budget, **best, "tokens_per_parameter": best["tokens"] / best["params"]}
        if replicas:
            made = [split(one, budget) for one in replicas]
            told["intervals"] = {name: interval(np.array([one[name] for one in made]), fit.level) for name in best}
        beyond = max(math.log10(budget / compute.max()), math.log10(compute.min() / budget), 0.0)
        told["decades_beyond_data"] = beyond
        if beyond > 0.05:
            fit.warnings.append(
                f"budget {budget:.3g}: lies {beyond:.1f} decades outside the runs' compute ({compute.min():.3g} to "
                f"{compute.max():.3g}): this is an extrapolation"
            )
        fit.optima.append(told)
    _frontier(fit, replicas, compute)


def _frontier(fit: Fit, replicas: list[dict[str, float]], compute: np.ndarray) -> None:
    asked = [told["budget"] for told in fit.optima]
    budgets = np.geomspace(min(compute.min(), *asked, np.inf), max(compute.max(), *asked, 0.0), 40)
    fit.frontier = {"flops": budgets, "params": fit.coefficients["k_N"] * budgets ** fit.coefficients["a"]}
    if replicas:
        every = np.array([one["k_N"] * budgets ** one["a"] for one in replicas])
        low, high = np.quantile(every, [(1 - fit.level) / 2, (1 + fit.level) / 2], axis=0)
        fit.frontier |= {"params_low": low, "params_high": high}
