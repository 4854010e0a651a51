"""Fitting: many beginnings descend together, the best are finished to the last digit, resamples start from the result.

All beginnings and all resamples are rows of one array. A step is that of Levenberg and Marquardt on weights that make squares
equal to Huber's loss at the present residuals (iteratively reweighted least squares: Holland and Welsch 1977): a descent method
whose every step is one prediction of all rows. The best are then finished by BFGS with the exact gradient, on the sum of
Huber's losses: a mean makes its tolerances stop early, which is what went wrong in the original Chinchilla fit (Besiroglu et
al. 2024, arXiv 2404.10102, appendix).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from launcher.laws.form import Columns, Law, LawError

FINISHED = 8  # beginnings that are finished by BFGS
MOST_STARTS = 600


@dataclass(frozen=True)
class Problem:
    """A law, the rows it is fitted to, and coefficients that stay as they are given. logs: logarithms of the losses (n,)."""

    law: Law
    columns: Columns
    logs: np.ndarray
    fixed: Mapping[str, float]

    @property
    def free(self) -> np.ndarray:
        """Indices of coefficients that are fitted."""
        return np.array([i for i, name in enumerate(self.law.names) if name not in self.fixed], dtype=int)

    def residuals(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(residuals (…, n), derivatives by free coefficients (…, n, free)): of the logarithm, or of the loss itself."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            logs, slopes = self.law.predict(theta, self.columns)
            slopes = slopes[..., self.free]
            if not self.law.squares:
                return logs - self.logs, slopes
            losses = np.exp(logs)
            return losses - np.exp(self.logs), losses[..., None] * slopes

    @property
    def huber(self) -> float:
        """Residuals beyond this count linearly."""
        return np.inf if self.law.squares else self.law.huber

    def cost(self, residuals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sum of Huber's losses, with weights (…, n); infinite where anything is not finite."""
        size = np.abs(residuals)
        each = np.where(size <= self.huber, 0.5 * size * size, self.huber * (size - 0.5 * self.huber)) \
            if np.isfinite(self.huber) else 0.5 * size * size  # fmt: skip
        total = (weights * each).sum(axis=-1)
        return np.where(np.isfinite(total), total, np.inf)

    def objective(self, theta: np.ndarray) -> float:
        """The published objective: the sum over rows."""
        return float(self.cost(self.residuals(theta)[0], np.ones(len(self.logs))))


def fit_best(problem: Problem) -> tuple[np.ndarray, float]:
    """(theta (P,), objective) of the best of many beginnings."""
    starts = _starts(problem)
    ones = np.ones((len(starts), len(problem.logs)))
    theta, costs = descend(problem, starts, ones, rounds=60)
    if not np.isfinite(costs).any():
        raise LawError(
            f"{problem.law.name}: no beginning of {len(starts)} gives a finite loss; look for rows that are not losses"
        )
    best, best_cost = theta[int(np.argmin(costs))], float(np.min(costs))
    for index in _distinct(theta, costs, FINISHED):
        found, cost = finish(problem, theta[index])
        if cost < best_cost:
            best, best_cost = found, cost
    return best, best_cost


def _starts(problem: Problem) -> np.ndarray:
    """Beginnings (S, P): the law's own, or every combination of its coefficients', evenly thinned where there are too many."""
    law = problem.law
    if law.starts is not None:
        found = law.starts(problem.columns, np.exp(problem.logs))
    else:
        found = np.array(list(itertools.product(*[[c.inner(v) for v in c.starts] for c in law.coefficients])))
    if len(found) > MOST_STARTS:
        found = found[np.random.default_rng(0).permutation(len(found))[:MOST_STARTS]]
    found = found.copy()
    for index, one in enumerate(law.coefficients):
        if one.name in problem.fixed:
            found[:, index] = one.inner(problem.fixed[one.name])
    return found


def _distinct(theta: np.ndarray, costs: np.ndarray, count: int) -> list[int]:
    """Indices of the lowest costs that are not the same place."""
    chosen: list[int] = []
    for index in np.argsort(costs):
        if np.isfinite(costs[index]) and all(
            not np.allclose(theta[index], theta[other], rtol=1e-4, atol=1e-4) for other in chosen
        ):
            chosen.append(int(index))
        if len(chosen) == count:
            break
    return chosen


def descend(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, rounds: int, tolerance: float = 1e-10
) -> tuple[np.ndarray, np.ndarray]:
    """(theta (S, P), costs (S,)) after at most `rounds` steps from rows theta (S, P), each with weights of the data (S, n)."""
    theta, free = theta.copy(), problem.free
    bounds = np.array([one.inner_bounds for one in problem.law.coefficients])[free]
    residuals, slopes = problem.residuals(theta)
    costs = problem.cost(residuals, weights)
    damping = np.full(len(theta), 1e-2)
    still = np.zeros(len(theta), dtype=int)
    for _ in range(rounds):
        live = np.flatnonzero(np.isfinite(costs) & (still < 6))
        if not len(live) or not len(free):
            break
        step = _step(problem, residuals[live], slopes[live], weights[live], damping[live])
        trial = theta[live].copy()
        trial[:, free] = np.clip(trial[:, free] + step, bounds[:, 0], bounds[:, 1])
        new_residuals, new_slopes = problem.residuals(trial)
        new_costs = problem.cost(new_residuals, weights[live])
        better = new_costs < costs[live]
        gain = np.where(better, costs[live] - new_costs, 0.0)
        still[live] = np.where(gain > tolerance * costs[live], 0, still[live] + 1)
        damping[live] = np.where(better, damping[live] / 4, damping[live] * 5)
        went = live[better]
        theta[went], costs[went] = trial[better], new_costs[better]
        residuals[went], slopes[went] = new_residuals[better], new_slopes[better]
    return theta, costs


def _step(
    problem: Problem, residuals: np.ndarray, slopes: np.ndarray, weights: np.ndarray, damping: np.ndarray
) -> np.ndarray:
    """Steps (S, free) of Levenberg and Marquardt on reweighted squares."""
    with np.errstate(divide="ignore"):
        each = weights * np.minimum(1.0, problem.huber / np.abs(residuals)) if np.isfinite(problem.huber) else weights
    weighted = slopes * each[..., None]
    normal = np.einsum("snp,snq->spq", weighted, slopes)
    gradient = np.einsum("snp,sn->sp", weighted, residuals)
    diagonal = np.einsum("spp->sp", normal)
    diagonal += damping[:, None] * diagonal + 1e-12 * (1 + diagonal.max(axis=1, keepdims=True))
    try:
        return -np.linalg.solve(normal, gradient[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return -np.stack([np.linalg.lstsq(a, g, rcond=None)[0] for a, g in zip(normal, gradient, strict=True)])


def finish(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, float]:
    """(theta, objective) at the minimum near theta, by BFGS with the exact gradient; within bounds by L-BFGS-B."""
    free = problem.free
    if not len(free):
        return theta, problem.objective(theta)
    scale = 1.0 / min(problem.huber, 1e-3) ** 2  # a unit is a residual of 1e-3: tolerances mean something
    ones = np.ones(len(problem.logs))

    def value(part: np.ndarray) -> tuple[float, np.ndarray]:
        whole = theta.copy()
        whole[free] = part
        residuals, slopes = problem.residuals(whole)
        cost = float(problem.cost(residuals, ones))
        if not np.isfinite(cost):
            return 1e300, np.zeros(len(free))
        pull = np.clip(residuals, -problem.huber, problem.huber)
        return scale * cost, scale * (pull @ slopes)

    bounds = [problem.law.coefficients[index].inner_bounds for index in free]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = minimize(value, theta[free], jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 1500})
        if any(not low <= x <= high for x, (low, high) in zip(found.x, bounds, strict=True)):
            found = minimize(value, np.clip(theta[free], *np.array(bounds).T), jac=True, method="L-BFGS-B", bounds=bounds,
                             options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000, "maxfun": 20000})  # fmt: skip
    result = theta.copy()
    result[free] = found.x
    return result, found.fun / scale


def resample(problem: Problem, theta: np.ndarray, count: int, seed: int) -> np.ndarray:
    """theta of `count` resamples of the rows (count, P), each begun at the fit (Efron 1979). Those without end are left out."""
    random, rows = np.random.default_rng(seed), len(problem.logs)
    enough = len(problem.free)
    weights = np.stack(
        [w for w in random.multinomial(rows, np.full(rows, 1 / rows), size=count) if (w > 0).sum() > enough]
        or [np.zeros(rows, dtype=int)]
    ).astype(float)
    if not weights.any():
        return np.empty((0, len(theta)))
    found = []
    most = max(1, int(4e6 / max(1, rows * len(theta))))  # rows at a time, so that derivatives stay within 32 MB
    for part in np.array_split(weights, -(-len(weights) // most)):
        replicas, costs = descend(problem, np.tile(theta, (len(part), 1)), part, rounds=120, tolerance=1e-7)
        found.append(replicas[np.isfinite(costs)])
    return np.concatenate(found)
