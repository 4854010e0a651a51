"""Repeated data: tokens that were seen before, and parameters beyond what the unique ones call for, count for less each time.

Muennighoff et al. 2023, arXiv 2305.16264, section 3: D' = U + U R*_D (1 - exp(-R_D / R*_D)) with R_D = D / U - 1 repeats, and
N' alike, where U_N is what the unique tokens call for: alpha A / U_N^alpha = beta B / U^beta, if N is more.
"""

from __future__ import annotations

import numpy as np

from launcher.laws.chinchilla import COEFFICIENTS, linear_starts
from launcher.laws.form import Coefficient, Columns, Law, LawError, constant, log_sum

PUBLISHED = {"A": 521.0, "B": 1488.0, "E": 1.87, "alpha": 0.353, "beta": 0.353, "R_D": 15.4, "R_N": 5.3}
"""On C4, where both exponents were held equal: arXiv 2305.16264, section 5 and appendix A."""


def _worth(times: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log g with g = 1 + R* (1 - exp(-R / R*)), and its derivatives by R and by log R*."""
    left = np.exp(-times / half)
    g = 1 + half * (1 - left)
    return np.log(g), left / g, (half * (1 - left) - times * left) / g


def _predict(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (log A, log B, log E, alpha, beta, log R*_D, log R*_N)."""
    a, b, _, alpha, beta = (theta[..., k, None] for k in range(5))
    n, u = np.log(columns["params"]), np.log(columns["unique"])
    repeats = np.maximum(columns["tokens"] / columns["unique"] - 1, 0.0)
    shape = np.broadcast_shapes(a.shape, n.shape)
    tokens = np.zeros((*shape, 7))
    log_d, _, tokens[..., 5] = _worth(np.broadcast_to(repeats, shape), np.exp(theta[..., 5, None]))
    # of the parameters: U_N follows from the law itself, so its derivatives go through A, B and both exponents
    called = (np.log(alpha) + a - np.log(beta) - b + beta * u) / alpha
    excess = np.exp(np.clip(n - called, -700, 700)) - 1
    over = excess > 0
    log_g, by_excess, by_half = _worth(np.where(over, excess, 0.0), np.exp(theta[..., 6, None]))
    by_called = np.where(over, 1 - by_excess * (excess + 1), 0.0)
    params = np.zeros((*shape, 7))
    params[..., 0], params[..., 1] = by_called / alpha, -by_called / alpha
    params[..., 3] = by_called * (1 / alpha - called) / alpha
    params[..., 4] = by_called * (u - 1 / beta) / alpha
    params[..., 6] = np.where(over, by_half, 0.0)
    first = _term(theta, 0, 3, np.where(over, called + log_g, n), params)
    second = _term(theta, 1, 4, log_d + u, tokens)
    return log_sum(first, second, constant(theta, 2, len(n)))


def _term(
    theta: np.ndarray, amplitude: int, index: int, x: np.ndarray, slope: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """exp(theta[amplitude]) * exp(-theta[index] x), where x itself has derivatives by theta."""
    exponent = theta[..., index, None]
    found = -exponent[..., None] * slope
    found[..., amplitude] += 1.0
    found[..., index] -= x
    return theta[..., amplitude, None] - exponent * x, found


def _starts(columns: Columns, losses: np.ndarray) -> np.ndarray:
    """Chinchilla's beginnings from runs that repeat little, with several half-lives."""
    little = columns["tokens"] / columns["unique"] < 4
    chosen = little if little.sum() >= 6 else np.ones(len(losses), dtype=bool)
    base = linear_starts("params")({name: values[chosen] for name, values in columns.items()}, losses[chosen])
    base = base[(base[:, 3] > 0.15) & (base[:, 4] > 0.15)]
    return np.array([[*one, np.log(d), np.log(n)] for one in base for d in (3.0, 15.0) for n in (1.0, 8.0)])


def _prepare(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if (columns["unique"] > columns["tokens"] * 1.001).any():
        raise LawError("--unique: some runs have fewer tokens than unique ones; tokens count every pass over the data")
    return {"unique": np.minimum(columns["unique"], columns["tokens"])}


REPEATS = Law(
    name="repeats",
    title="Data-constrained: repeated tokens",
    formula="L = E + A / N'^alpha + B / D'^beta, D' = U (1 + R_D (1 - exp(-(D/U - 1) / R_D)))",
    source="Muennighoff et al. 2023, arXiv 2305.16264, section 3",
    reads=("params", "tokens", "unique"),
    coefficients=(
        *COEFFICIENTS[:3],
        Coefficient("alpha", (0.35,), bounds=(1e-3, 3.0)),
        Coefficient("beta", (0.35,), bounds=(1e-3, 3.0)),
        Coefficient("R_D", (3.0, 15.0), log=True, bounds=(0.01, 1e4)),
        Coefficient("R_N", (1.0, 8.0), log=True, bounds=(0.01, 1e4)),
    ),
    predict=_predict,
    starts=_starts,
    prepare=_prepare,
)
