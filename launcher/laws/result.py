"""What a fit comes to, and its form as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class FitOptions:
    """Options of `triaxis fit` that are not columns."""

    where: str = ""
    """Rows to take: 'dataset=c4, params<1e9'; commas join conditions, | separates alternatives."""
    fit_where: str = ""
    """Rows of these to fit; the others are predicted and their errors told, instead of holding out the largest."""
    drop_top_losses: int = 0
    """Leave out so many rows with the highest losses."""
    fix: tuple[str, ...] = ()
    """Coefficients that stay as given: E=1.69,alpha=0.34."""
    budget: tuple[float, ...] = ()
    """Budgets in FLOPs for which the best parameters and tokens are told: 1e20,1e21."""
    bootstraps: int = 400
    """Resamples of the rows from which intervals come; 0 for none."""
    level: float = 0.95
    """Coverage of the intervals."""
    hold_out: float = 0.2
    """Share of the rows, those of most compute, that are predicted from a fit of the others; 0 for none."""
    seed: int = 0
    """Of the resamples."""
    sequence_length: int = 0
    """Tokens of a sequence, where batch sizes are in sequences (step, power)."""
    within: float = 0.0025
    """step: learning rates and batches count as best whose loss is at most this share above the lowest of their (N, D)."""
    json: bool = False
    """Print one JSON object instead of text."""
    out: str = ""
    """Write the picture here, a PNG or SVG by its ending; or, into a directory, light and dark ones and the fit as fit.json."""


@dataclass(frozen=True)
class Told:
    """What people read of a law: its name on the command line, title, formula and source."""

    name: str
    title: str
    formula: str
    source: str


@dataclass
class Fit:
    """A fit. Coefficients are named as in the papers; losses in nats, budgets in FLOPs.

    intervals: of coefficients and derived, None where there are none. objective: the minimum of what was minimised.
    errors: of the fitted rows, relative. held_out: of rows that the coefficients were not fitted to. optima: one a budget.
    points: columns of the fitted rows by role, and `predicted` losses (n,). replicas: coefficients of resamples by name (B,).
    profiles: lines of equal compute (budget, params (k,), loss (k,), and where it is known best_params, best_loss). frontier:
    flops, params, loss (k,) at the best split, with params_low, params_high and so on where there are resamples. against:
    by name, what was measured beside what the law says, where that is no loss.
    """

    law: str
    title: str
    formula: str
    source: str
    data: str
    columns: dict[str, str]
    rows: int
    coefficients: dict[str, float]
    derived: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] | None = None
    level: float = 0.95
    bootstraps: int = 0
    objective: float | None = None
    objective_is: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, Any] | None = None
    optima: list[dict[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    points: dict[str, np.ndarray] = field(default_factory=dict)
    replicas: dict[str, np.ndarray] = field(default_factory=dict)
    profiles: list[dict[str, np.ndarray]] = field(default_factory=list)
    frontier: dict[str, np.ndarray] = field(default_factory=dict)
    against: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As one JSON object; README.md documents the keys."""
        found = {
            "law": self.law,
            "title": self.title,
            "formula": self.formula,
            "source": self.source,
            "data": self.data,
            "columns": self.columns,
            "rows": self.rows,
            "coefficients": self.coefficients,
            "derived": self.derived,
            "intervals": self.intervals,
            "level": self.level,
            "bootstraps": self.bootstraps,
            "objective": self.objective,
            "objective_is": self.objective_is,
            "errors": self.errors,
            "held_out": self.held_out,
            "optimum": self.optima,
            **self.extra,
            "notes": self.notes,
            "warnings": self.warnings,
        }
        return plain_numbers(found)


def plain_numbers(value: Any) -> Any:
    """Nested data as strict JSON can hold it: numbers that are none are None. (The metrics' own `strict` brings torch.)"""
    if isinstance(value, dict):
        return {name: plain_numbers(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_numbers(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def interval(values: np.ndarray, level: float) -> Interval:
    """The middle `level` of values (percentile bootstrap)."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
