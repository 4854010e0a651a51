"""Mixtures of experts: how many experts there are, and how finely they are cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from launcher.laws.form import Coefficient, Columns, Law, constant, log_sum, power

JOINT_PUBLISHED = {
    "a": 35.91, "delta": 0.2285, "alpha": -0.1889, "gamma": -0.0098, "b": 35.98, "omega": -0.5529, "beta": -0.1775,
    "zeta": 0.0259, "c": 1.3637,
}  # fmt: skip
"""arXiv 2502.05172, table of section 4; exponents of N and D are negative."""


def _effective(theta: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log of the effective number of experts, and its derivatives by log E_start and log E_max: it is E_start for one expert
    and saturates at E_max (Clark et al. 2022, arXiv 2202.01169)."""
    start, most = np.exp(theta[..., 9, None]), np.exp(theta[..., 10, None])
    offset = 1 / (1 / start - 1 / most)
    inverse = 1 / (experts - 1 + offset) + 1 / most
    by_offset = 1 / (experts - 1 + offset) ** 2 / inverse
    return -np.log(inverse), by_offset * offset**2 / start, (1 / most) / inverse - by_offset * offset**2 / most


def _joint(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (log a, delta, alpha, gamma, log b, omega, beta, zeta, log c, log E_start, log E_max)."""
    n, d = np.log(columns["active"]), np.log(columns["tokens"])
    e, by_start, by_most = _effective(theta, columns["experts"])
    terms = [_experts_term(theta, first, x, e, by_start, by_most) for first, x in ((0, n), (4, d))]
    return log_sum(*terms, constant(theta, 8, len(n)))


def _experts_term(
    theta: np.ndarray, first: int, x: np.ndarray, e: np.ndarray, by_start: np.ndarray, by_most: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """exp(amplitude) E^p X^(q + r log E), coefficients from `first` on."""
    amplitude, p, q, r = (theta[..., first + k, None] for k in range(4))
    log = amplitude + p * e + (q + r * e) * x
    by_e = p + r * x
    slope = np.zeros((*log.shape, 11))
    slope[..., first], slope[..., first + 1], slope[..., first + 2], slope[..., first + 3] = 1.0, e, x, e * x
    slope[..., 9], slope[..., 10] = by_e * by_start, by_e * by_most
    return log, slope


def _joint_starts(columns: Columns, losses: np.ndarray) -> np.ndarray:
    """Chinchilla's beginnings on active parameters, with mild effects of the experts."""
    from launcher.laws.chinchilla import linear_starts

    base = linear_starts("active")({"active": columns["active"], "tokens": columns["tokens"]}, losses)
    return np.array(
        [
            [a, p, -alpha, 0.0, b, -p, -beta, 0.0, e, np.log(start), np.log(most)]
            for a, b, e, alpha, beta in base
            if alpha < 0.8 and beta < 0.8
            for p in (-0.2, 0.0, 0.2)
            for start, most in ((1.5, 300.0), (3.0, 300.0))
        ]
    )


def _caution(law: Mapping[str, float], columns: Columns) -> list[str]:
    kinds = len(np.unique(columns["experts"]))
    if kinds < 4:
        return [
            f"{kinds} numbers of experts: E_start and E_max are hardly fixed; hold them with --fix E_start=…,E_max=…"
        ]
    return []


JOINT = Law(
    name="moe",
    title="Mixture of experts, active parameters and experts",
    formula="L = a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c, N active, Ê(E; E_start, E_max)",
    source="Ludziejewski et al. 2025, arXiv 2502.05172, equation 6",
    reads=("active", "tokens", "experts"),
    coefficients=(
        Coefficient("a", (30.0,), log=True, bounds=(1e-8, 1e12)),
        Coefficient("delta", (0.2,), bounds=(-5.0, 5.0)),
        Coefficient("alpha", (-0.2,), bounds=(-3.0, 0.0)),
        Coefficient("gamma", (0.01,), bounds=(-1.0, 1.0)),
        Coefficient("b", (30.0,), log=True, bounds=(1e-8, 1e12)),
        Coefficient("omega", (-0.5,), bounds=(-5.0, 5.0)),
        Coefficient("beta", (-0.2,), bounds=(-3.0, 0.0)),
        Coefficient("zeta", (0.02,), bounds=(-1.0, 1.0)),
        Coefficient("c", (1.0,), log=True, bounds=(1e-6, 1e3)),
        Coefficient("E_start", (2.0,), log=True, bounds=(1.0, 20.0)),
        Coefficient("E_max", (300.0,), log=True, bounds=(25.0, 1e5)),
    ),
    predict=_joint,
    starts=_joint_starts,
    caution=_caution,
)


def _granular(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (log g, gamma, log a, alpha, log b, beta, log c)."""
    n, d, fine = (np.log(columns[role]) for role in ("params", "tokens", "granularity"))
    return log_sum(
        power(theta, 0, (1, fine), (3, n)), power(theta, 2, (3, n)), power(theta, 4, (5, d)), constant(theta, 6, len(n))
    )


GRANULAR = Law(
    name="granularity",
    title="Fine-grained mixture of experts",
    formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
    source="Krajewski et al. 2024, arXiv 2402.07871, equation 6",
    reads=("params", "tokens", "granularity"),
    coefficients=(
        Coefficient("g", (1.0, 10.0), log=True, bounds=(1e-8, 1e12)),
        Coefficient("gamma", (0.3, 0.8), bounds=(1e-3, 10.0)),
        Coefficient("a", (3.0, 30.0), log=True, bounds=(1e-8, 1e12)),
        Coefficient("alpha", (0.1, 0.25), bounds=(0.0, 3.0)),
        Coefficient("b", (10.0, 100.0), log=True, bounds=(1e-8, 1e12)),
        Coefficient("beta", (0.12, 0.25), bounds=(0.0, 3.0)),
        Coefficient("c", (0.3, 1.0), log=True, bounds=(1e-6, 1e3)),
    ),
    predict=_granular,
)
