"""What a law is to the engine: the columns it reads, its coefficients, and the logarithm of its loss with exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, np.ndarray]
"""Measured quantities by role (`params`, `tokens`, …), each of shape (n,)."""

FLOPS_PER_PARAMETER_TOKEN = 6.0  # forward and backward: Kaplan et al. 2020 (arXiv 2001.08361), section 2.1


class LawError(ValueError):
    """A fit that cannot be: the message names the option or column, the value, the limit and the cure."""


@dataclass(frozen=True)
class Coefficient:
    """A number that is fitted.

    name: as in the paper. starts: values that searches begin from, in the units they are printed in. log: its logarithm is
    what is searched over, so that it is positive. bounds: of the printed value; a fit that ends there is told of.
    """

    name: str
    starts: tuple[float, ...]
    log: bool = False
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def inner(self, value: float) -> float:
        """What is searched over, of a printed value."""
        return float(np.log(value)) if self.log else value

    @property
    def inner_bounds(self) -> tuple[float, float]:
        """Bounds of what is searched over."""
        low, high = self.bounds
        if not self.log:
            return low, high
        return (float(np.log(low)) if low > 0 else -np.inf), (float(np.log(high)) if high < np.inf else np.inf)


Predict = Callable[[np.ndarray, Columns], tuple[np.ndarray, np.ndarray]]
"""theta (…, P), columns (n,) -> logarithm of the predicted loss (…, n), its derivatives by theta (…, n, P)."""


@dataclass(frozen=True)
class Law:
    """A law of losses that the engine fits.

    name: on the command line. title, formula: for people. source: paper and equation. reads: roles of columns besides `loss`.
    predict: see `Predict`. squares: least squares on the loss itself instead of Huber's loss on its logarithm. starts: more
    or better beginnings than the product of the coefficients' own, made from the data, shape (S, P). prepare: checks
    columns and makes further ones. derived: quantities that follow from the coefficients. optimum: given coefficients and a
    budget in FLOPs, the best values by role. caution: warnings of the law's own. target: the role that it foretells.
    """

    name: str
    title: str
    formula: str
    source: str
    reads: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]
    predict: Predict
    squares: bool = False
    huber: float = 1e-3
    starts: Callable[[Columns, np.ndarray], np.ndarray] | None = None
    prepare: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    derived: Callable[[Mapping[str, float]], dict[str, float]] | None = None
    optimum: Callable[[Mapping[str, float], float], dict[str, float]] | None = None
    caution: Callable[[Mapping[str, float], Columns], list[str]] | None = None
    target: str = "loss"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coefficients in order."""
        return tuple(one.name for one in self.coefficients)

    def printed(self, theta: np.ndarray) -> np.ndarray:
        """Coefficients as they are printed, of what is searched over; any leading axes."""
        logs = np.array([one.log for one in self.coefficients])
        with np.errstate(over="ignore"):
            return np.where(logs, np.exp(np.where(logs, theta, 0.0)), theta)

    def inner(self, values: Mapping[str, float]) -> np.ndarray:
        """theta of printed coefficients."""
        return np.array([one.inner(values[one.name]) for one in self.coefficients])


def log_sum(*terms: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """log(sum of exp) over terms, and its derivatives. A term: (logarithm (…, n), derivatives (…, n, P))."""
    logs = np.stack(np.broadcast_arrays(*[log for log, _ in terms]))
    top = logs.max(axis=0)
    weights = np.exp(logs - top)
    total = weights.sum(axis=0)
    slopes = sum((weight / total)[..., None] * slope for weight, (_, slope) in zip(weights, terms, strict=True))
    return top + np.log(total), np.asarray(slopes)


def power(theta: np.ndarray, amplitude: int, *factors: tuple[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The term exp(theta[amplitude]) * product of x^-theta[k], given (k, log x), as `log_sum` takes it."""
    count = factors[0][1].shape[0] if factors else 1
    log = np.broadcast_to(theta[..., amplitude, None], (*theta.shape[:-1], count)).astype(float)
    slope = np.zeros((*theta.shape[:-1], count, theta.shape[-1]))
    slope[..., amplitude] = 1.0
    for index, x in factors:
        log = log - theta[..., index, None] * x
        slope[..., index] -= x
    return log, slope


def constant(theta: np.ndarray, amplitude: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The term exp(theta[amplitude]) for each of `count` rows."""
    log, slope = power(theta, amplitude)
    shape = (*theta.shape[:-1], count)
    return np.broadcast_to(log, shape), np.broadcast_to(slope, (*shape, theta.shape[-1]))
