"""The law of a sweep, for its page: the one that its runs can carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from launcher.laws.form import LawError
from launcher.laws.laws import entry
from launcher.laws.result import Fit, FitOptions
from launcher.laws.table import Table, read_table


def fit_of_sweep(directory: Path, options: FitOptions | None = None) -> Fit | None:
    """IsoFLOP profiles where runs come in budgets, the parametric law where they are enough and differ in size, else None.

    `law_picture` draws it. Runs that are not done are left out, so the fit grows with its sweep.
    """
    options = options or FitOptions(bootstraps=200)
    try:
        table = read_table(str(directory))
    except LawError:
        return None
    if not {"parameters", "tokens", "validation_loss"} <= set(table.names) or not _differ(table):
        return None
    for name in ("isoflop", "chinchilla"):
        try:
            return entry(name).fit(
                table, {"params": "parameters", "tokens": "tokens", "loss": "validation_loss"}, options
            )
        except LawError:
            continue
    return None


def _differ(table: Table) -> bool:
    """Whether there are three sizes or more: of fewer there is no law."""
    return len(np.unique(table.numbers("parameters"))) > 2
