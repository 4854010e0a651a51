"""Two modalities in one model: the mean of both alone, less what they give each other, plus what they compete for.

Aghajanyan et al. 2023, arXiv 2301.03728. Rows without tokens of one modality are runs of the other alone and fix its own law;
all are fitted together, from beginnings found one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from launcher.laws.form import Coefficient, Columns, Law, LawError, constant, log_sum, power

_LEAST = 1e-6  # a loss that a trial law sends below nothing counts as this
_OWN = 6  # runs of a modality alone that its five coefficients need


def _alone(theta: np.ndarray, first: int, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss of a modality alone and its derivatives by its five coefficients, which stand from `first` on."""
    own = theta[..., first : first + 5]
    log, slope = log_sum(power(own, 0, (3, n)), power(own, 1, (4, d)), constant(own, 2, len(n)))
    loss = np.exp(log)
    return loss, loss[..., None] * slope


def _predict(theta: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """theta = (A_1 B_1 E_1 alpha_1 beta_1, the same of 2, C, A, B, alpha, beta), amplitudes as logarithms but C."""
    n = np.log(columns["params"])
    first, second = columns["first"], columns["second"]
    mixed = (first > 0) & (second > 0)
    weights = np.where(mixed, 0.5, first > 0), np.where(mixed, 0.5, second > 0)
    slope = np.zeros((*theta.shape[:-1], len(n), 15))
    loss = np.zeros(slope.shape[:-1])
    for at, weight, tokens in ((0, weights[0], first), (5, weights[1], second)):
        own, by_own = _alone(theta, at, n, np.log(np.maximum(tokens, 1.0)))
        loss += weight * own
        slope[..., at : at + 5] = weight[:, None] * by_own
    both = np.log(first + second)
    for amplitude, index, x in ((11, 13, n), (12, 14, both)):
        log, by = power(theta, amplitude, (index, x))
        term = np.where(mixed, np.exp(log), 0.0)
        loss += term
        slope += term[..., None] * by
    loss -= np.where(mixed, theta[..., 10, None], 0.0)
    slope[..., 10] -= mixed
    inside = loss > _LEAST
    loss = np.where(inside, loss, _LEAST)
    return np.log(loss), np.where(inside[..., None], slope / loss[..., None], 0.0)


def _starts(columns: Columns, losses: np.ndarray) -> np.ndarray:
    """Both modalities alone, then for exponents on a grid the best C, A and B of what is left."""
    from scipy.optimize import nnls

    own = np.concatenate(
        [_own(columns, losses, role, other) for role, other in (("first", "second"), ("second", "first"))]
    )
    n, both = columns["params"], columns["first"] + columns["second"]
    mixed = (columns["first"] > 0) & (columns["second"] > 0)
    nothing = np.array([*own, 0.0, -50.0, -50.0, 0.3, 0.3])
    left = losses - np.exp(_predict(nothing, columns)[0])
    found = []
    for alpha in (0.1, 0.2, 0.35, 0.6):
        for beta in (0.1, 0.2, 0.35, 0.6):
            terms = np.stack([-np.ones_like(n), n**-alpha, both**-beta], axis=1)[mixed]
            scale = np.abs(terms).max(axis=0)
            amplitudes = nnls(terms / scale, left[mixed])[0] / scale
            least = 0.01 / np.abs(terms).mean(axis=0)
            found.append([*own, amplitudes[0], *np.log(np.maximum(amplitudes[1:], least[1:])), alpha, beta])
    return np.array(found)


def _own(columns: Columns, losses: np.ndarray, role: str, other: str) -> np.ndarray:
    """theta of a modality from its runs alone."""
    from launcher.laws.chinchilla import CHINCHILLA
    from launcher.laws.engine import Problem, fit_best

    alone = (columns[other] <= 0) & (columns[role] > 0)
    part = {"params": columns["params"][alone], "tokens": columns[role][alone]}
    return fit_best(Problem(CHINCHILLA, part, np.log(losses[alone]), {}))[0]


def _prepare(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    first, second = columns["first"], columns["second"]
    if (first < 0).any() or (second < 0).any() or (first + second <= 0).any():
        raise LawError("--first, --second: every run needs tokens of one modality or both, and none below nothing")
    for role, alone in (("first", (first > 0) & (second <= 0)), ("second", (second > 0) & (first <= 0))):
        if alone.sum() < _OWN:
            raise LawError(
                f"mixed: {int(alone.sum())} runs are of the {role} modality alone, {_OWN} or more are needed for its own law"
            )
    return {"tokens": first + second}


def _derived(law: Mapping[str, float]) -> dict[str, float]:
    """The size beyond which modalities help each other, tokens without end: where A / N^alpha falls below C."""
    if law["C"] <= 0 or law["alpha"] <= 0:
        return {"N_barrier": float("inf")}
    return {"N_barrier": float((law["A"] / law["C"]) ** (1 / law["alpha"]))}


def _modality(name: str) -> tuple[Coefficient, ...]:
    return (
        Coefficient(f"A_{name}", (100.0,), log=True, bounds=(1e-8, 1e16)),
        Coefficient(f"B_{name}", (100.0,), log=True, bounds=(1e-8, 1e16)),
        Coefficient(f"E_{name}", (1.0,), log=True, bounds=(1e-6, 1e3)),
        Coefficient(f"alpha_{name}", (0.3,), bounds=(0.0, 3.0)),
        Coefficient(f"beta_{name}", (0.3,), bounds=(0.0, 3.0)),
    )


MIXED = Law(
    name="mixed",
    title="Two modalities in one model",
    formula="L = (L_1(N, D_1) + L_2(N, D_2)) / 2 - C + A / N^alpha + B / (D_1 + D_2)^beta",
    source="Aghajanyan et al. 2023, arXiv 2301.03728, section 4",
    reads=("params", "first", "second"),
    coefficients=(
        *_modality("1"),
        *_modality("2"),
        Coefficient("C", (0.1,), bounds=(-10.0, 10.0)),
        Coefficient("A", (10.0,), log=True, bounds=(1e-12, 1e16)),
        Coefficient("B", (10.0,), log=True, bounds=(1e-12, 1e16)),
        Coefficient("alpha", (0.3,), bounds=(0.0, 3.0)),
        Coefficient("beta", (0.3,), bounds=(0.0, 3.0)),
    ),
    predict=_predict,
    starts=_starts,
    prepare=_prepare,
    derived=_derived,
)
