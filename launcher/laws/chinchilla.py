"""Loss as a sum of powers of parameters and tokens: Chinchilla's third approach, and what follows from it in closed form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from launcher.laws.form import FLOPS_PER_PARAMETER_TOKEN, Coefficient, Columns, Law, constant, log_sum, power

PUBLISHED = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022 (arXiv 2203.15556), equation 10."""
REPLICATED = {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024 (arXiv 2404.10102), table 1: the same data fitted to the end."""
GRID = tuple(itertools.product(np.arange(0.1, 1.3, 0.2), np.arange(0.1, 1.3, 0.2)))


def sum_of_powers(size: str) -> Callable[[np.ndarray, Columns], tuple[np.ndarray, np.ndarray]]:
    """E + A / size^alpha + B / tokens^beta, over theta = (log A, log B, log E, alpha, beta)."""

    def predict(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        n, d = np.log(columns[size]), np.log(columns["tokens"])
        return log_sum(power(theta, 0, (3, n)), power(theta, 1, (4, d)), constant(theta, 2, len(n)))

    return predict


def linear_starts(size: str) -> Callable[[Columns, np.ndarray], np.ndarray]:
    """Beginnings: for exponents on a grid, the amplitudes that are best in squares and not negative."""

    def starts(columns: Columns, losses: np.ndarray) -> np.ndarray:
        from scipy.optimize import nnls

        found = []
        for alpha, beta in GRID:
            terms = np.stack(
                [columns[size] ** -alpha, columns["tokens"] ** -beta, np.ones_like(losses)], axis=1
            ) / losses[:, None]  # fmt: skip
            scale = terms.max(axis=0)
            amplitudes = nnls(terms / scale, np.ones_like(losses))[0] / scale
            share = 0.02 / (terms.mean(axis=0))  # a term that came out as nothing begins with two percent of the loss
            found.append([*np.log(np.maximum(amplitudes, share)), alpha, beta])
        return np.array(found)

    return starts


def optimum(law: Mapping[str, float], budget: float) -> dict[str, float]:
    """Best parameters and tokens for a budget in FLOPs, C = 6 N D (arXiv 2203.15556, equation 4), and the loss there."""
    alpha, beta = law["alpha"], law["beta"]
    ratio = (alpha * law["A"] / (beta * law["B"])) ** (1 / (alpha + beta))
    params = ratio * (budget / FLOPS_PER_PARAMETER_TOKEN) ** (beta / (alpha + beta))
    tokens = budget / (FLOPS_PER_PARAMETER_TOKEN * params)
    loss = law["E"] + law["A"] / params**alpha + law["B"] / tokens**beta
    return {"params": params, "tokens": tokens, "loss": loss}


def exponents(law: Mapping[str, float]) -> dict[str, float]:
    """Exponents of the best parameters and tokens in the budget."""
    total = law["alpha"] + law["beta"]
    return {"a_opt": law["beta"] / total, "b_opt": law["alpha"] / total}


COEFFICIENTS = (
    Coefficient("A", (1.0, 100.0, 1e4), log=True, bounds=(1e-8, 1e16)),
    Coefficient("B", (1.0, 100.0, 1e4), log=True, bounds=(1e-8, 1e16)),
    Coefficient("E", (0.5, 1.0, 2.0), log=True, bounds=(1e-6, 1e3)),
    Coefficient("alpha", (0.2, 0.5), bounds=(0.0, 3.0)),
    Coefficient("beta", (0.2, 0.5), bounds=(0.0, 3.0)),
)

CHINCHILLA = Law(
    name="chinchilla",
    title="Chinchilla, parametric (approach 3)",
    formula="L = E + A / N^alpha + B / D^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556, equation 10 and section 3.3; as Besiroglu et al. 2024, arXiv 2404.10102",
    reads=("params", "tokens"),
    coefficients=COEFFICIENTS,
    predict=sum_of_powers("params"),
    starts=linear_starts("params"),
    derived=exponents,
    optimum=optimum,
)

AVERAGE = Law(
    name="sparse",
    title="Sparse and dense by the average parameter count",
    formula="L = E + A / Nbar^alpha + B / D^beta, Nbar the mean over training of the parameters that are not zero",
    source="Jin et al. 2025, The Journey Matters, arXiv 2501.12486 (ICLR 2025): Chinchilla's equation 10 with Nbar for N",
    reads=("average", "tokens"),
    coefficients=COEFFICIENTS,
    predict=sum_of_powers("average"),
    starts=linear_starts("average"),
    derived=exponents,
    optimum=optimum,
)
