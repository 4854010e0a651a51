"""The way of a fit: rows → columns → coefficients → intervals → held-out error → optima → warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.laws.columns import Measured, measure
from launcher.laws.engine import Problem, fit_best, resample
from launcher.laws.form import Law, LawError
from launcher.laws.frontier import draw_lines
from launcher.laws.result import Fit, FitOptions, interval
from launcher.laws.table import Table

FEW = 2  # rows a coefficient, below which intervals are not told
TOGETHER = 0.98  # correlation of log N and log D above which their terms cannot be told apart


def fit_law(law: Law, table: Table, given: Mapping[str, str], options: FitOptions) -> Fit:
    """Fit a law of losses. LawError where the data cannot carry it."""
    measured = _measured(law, table, given, options)
    fixed = fixed_of(law, options.fix)
    used, others = _split(measured, table, options)
    problem = problem_of(law, used, fixed)
    _check_rows(law, len(used), len(problem.free))
    theta, objective = fit_best(problem)
    coefficients = dict(zip(law.names, map(float, law.printed(theta)), strict=True))
    fit = Fit(law.name, law.title, law.formula, law.source, table.place, measured.named, len(used), coefficients)
    fit.notes += [*measured.notes, *([f"held as given: {', '.join(options.fix)}"] if options.fix else [])]
    fit.objective, fit.objective_is = objective, _objective_text(law)
    fit.derived = law.derived(coefficients) if law.derived else {}
    predicted = predict_losses(law, theta, used)
    fit.points = {**used.columns, "predicted": predicted}
    fit.errors = relative_errors(predicted, used.columns["loss"])
    _intervals(fit, law, problem, theta, options)
    fit.held_out = _held_out(law, theta, used, others, fixed, options, fit.warnings)
    _optima(fit, law, used, options)
    draw_lines(fit, law, theta, each_replica(fit))
    fit.warnings += _degenerate(law, problem, theta)
    fit.warnings += law.caution(coefficients, used.columns) if law.caution else []
    return fit


def _measured(law: Law, table: Table, given: Mapping[str, str], options: FitOptions) -> Measured:
    """Chosen rows and columns."""
    if options.where:
        chosen = table.where(options.where)
        if not chosen.rows:
            raise LawError(f"--where {options.where!r}: no row of {table.place} fulfils it")
        table = chosen
    measured = measure(table, (*law.reads, law.target), given)
    measured.columns["loss"] = measured.columns[law.target]
    if law.prepare:
        measured.columns.update(law.prepare(measured.columns))
    return drop_top(measured, options.drop_top_losses)


def drop_top(measured: Measured, count: int) -> Measured:
    """Without so many rows of the highest losses, and those equal to the lowest of them."""
    if count <= 0:
        return measured
    if count >= len(measured):
        raise LawError(f"--drop-top-losses={count}: there are only {len(measured)} rows; drop fewer")
    losses = measured.columns["loss"]
    return measured.only(losses < np.sort(losses)[-count])


def fixed_of(law: Law, texts: tuple[str, ...]) -> dict[str, float]:
    """`--fix` as numbers by name."""
    fixed = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in law.names:
            raise LawError(f"--fix {text}: {law.name} has no such coefficient; it has {', '.join(law.names)}")
        try:
            fixed[name] = float(value)
        except ValueError:
            raise LawError(f"--fix {text}: {value!r} is no number; write {name}=1.5") from None
        low, high = law.coefficients[law.names.index(name)].bounds
        if not low <= fixed[name] <= high:
            raise LawError(f"--fix {text}: must be between {low:g} and {high:g}")
    return fixed


def problem_of(law: Law, measured: Measured, fixed: Mapping[str, float]) -> Problem:
    """What the engine fits."""
    return Problem(law, measured.columns, np.log(measured.columns["loss"]), fixed)


def predict_losses(law: Law, theta: np.ndarray, measured: Measured) -> np.ndarray:
    """Losses of rows by a law."""
    return np.exp(law.predict(theta, measured.columns)[0])


def relative_errors(predicted: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Mean and largest relative distance of predictions, as shares, and the share of the losses' spread in logarithms
    that they explain."""
    shares = np.abs(predicted / losses - 1)
    logs = np.log(losses)
    spread = ((logs - logs.mean()) ** 2).sum()
    explained = 1 - ((np.log(predicted) - logs) ** 2).sum() / spread if spread > 0 else math.nan
    return {"mean": float(shares.mean()), "max": float(shares.max()), "r2": float(explained)}


def _split(measured: Measured, table: Table, options: FitOptions) -> tuple[Measured, Measured | None]:
    """(rows to fit, rows that --fit-where leaves to predict)."""
    if not options.fit_where:
        return measured, None
    from launcher.laws.table import condition

    holds = condition(options.fit_where, table.names, "--fit-where")
    mask = np.array([holds(row) for row in measured.rows])
    if not mask.any():
        raise LawError(f"--fit-where {options.fit_where!r}: no row fulfils it")
    return measured.only(mask), measured.only(~mask)


def _check_rows(law: Law, rows: int, free: int) -> None:
    if rows < free:
        raise LawError(
            f"{law.name}: {rows} rows cannot give {free} coefficients; measure more runs, or hold some with --fix name=value"
        )


def _objective_text(law: Law) -> str:
    return "sum of squares / 2 of the loss" if law.squares else f"sum of Huber({law.huber:g}) of the loss's logarithm"


def _intervals(fit: Fit, law: Law, problem: Problem, theta: np.ndarray, options: FitOptions) -> None:
    """Percentile bootstrap over rows, of coefficients and what follows from them."""
    free = len(problem.free)
    if not options.bootstraps or not free:
        return
    if fit.rows < FEW * free:
        fit.warnings.append(
            f"{fit.rows} rows for {free} coefficients: too few to resample, so there are no intervals; "
            f"measure at least {FEW * free} runs"
        )
        return
    replicas = law.printed(resample(problem, theta, options.bootstraps, options.seed))
    fit.replicas = dict(zip(law.names, replicas.T, strict=True))
    fit.level, fit.bootstraps = options.level, len(replicas)
    fit.intervals = {name: interval(values, options.level) for name, values in fit.replicas.items()}
    if law.derived:
        made = [law.derived(one) for one in each_replica(fit)]
        fit.intervals |= {name: interval(np.array([one[name] for one in made]), options.level) for name in fit.derived}


def each_replica(fit: Fit) -> list[dict[str, float]]:
    """Coefficients of every resample."""
    names = list(fit.replicas)
    if not names:
        return []
    return [dict(zip(names, map(float, row), strict=True)) for row in np.stack(list(fit.replicas.values()), axis=1)]


def _held_out(
    law: Law, theta: np.ndarray, used: Measured, others: Measured | None, fixed: Mapping[str, float],
    options: FitOptions, warned: list[str],
) -> dict[str, Any] | None:  # fmt: skip
    """Errors on rows that were not fitted: those that --fit-where left, else those of most compute, from a fit of the rest."""
    if others is not None:
        if not len(others):
            return None
        return _errors_of(
            law, theta, others, len(used), f"rows that --fit-where leaves: {options.fit_where!r}", each=True
        )
    if options.hold_out <= 0:
        return None
    size = _compute(used)
    count = max(1, round(options.hold_out * len(used)))
    largest = size >= np.sort(size)[-count]
    rest = used.only(~largest)
    free = len(law.names) - len(fixed)
    if len(rest) <= free:
        warned.append(
            f"no held-out error: without the {int(largest.sum())} largest runs, {len(rest)} are left for {free} coefficients"
        )
        return None
    found, _ = fit_best(problem_of(law, rest, fixed))
    share = math.log10(float(size[largest].max() / size[~largest].max()))
    how = f"the {int(largest.sum())} rows of most compute, {share:.2f} decades beyond those fitted"
    return _errors_of(law, found, used.only(largest), len(rest), how, each=False)


def _compute(measured: Measured) -> np.ndarray:
    """What runs are ordered by: FLOPs, else the product of what the law reads."""
    if "flops" in measured.columns:
        return measured.columns["flops"]
    sizes = [
        measured.columns[role]
        for role in ("params", "average", "active", "tokens", "unique")
        if role in measured.columns
    ]
    return np.prod(sizes, axis=0) if sizes else measured.columns["loss"] ** -1.0


def _errors_of(law: Law, theta: np.ndarray, rows: Measured, fitted: int, how: str, each: bool) -> dict[str, Any]:
    predicted, losses = predict_losses(law, theta, rows), rows.columns["loss"]
    found: dict[str, Any] = {"how": how, "rows": len(rows), "fitted": fitted, **relative_errors(predicted, losses)}
    if each:
        names = [row.get("name") or row.get("run") or str(index + 1) for index, row in enumerate(rows.rows)]
        found["runs"] = [
            {"name": name, "loss": float(loss), "predicted": float(told), "error": float(abs(told / loss - 1))}
            for name, loss, told in zip(names, losses, predicted, strict=True)
        ]
    return found


def _optima(fit: Fit, law: Law, used: Measured, options: FitOptions) -> None:
    """The best split of every budget, its interval, and how far beyond the data it lies."""
    if options.budget and law.optimum is None:
        raise LawError(
            f"--budget: {law.name} knows no best split of a budget; leave it out, or fit chinchilla or gadre"
        )
    best_at = law.optimum or _no_optimum
    for budget in options.budget:
        if budget <= 0:
            raise LawError(f"--budget={budget:g}: must be above 0")
        best = best_at(fit.coefficients, budget)
        told: dict[str, Any] = {"budget": budget, **best}
        if not all(math.isfinite(value) and value > 0 for value in best.values()):
            raise LawError(f"--budget={budget:g}: this fit has no optimum (a term or an exponent of it is nothing)")
        if "tokens" in best:
            told["tokens_per_parameter"] = best["tokens"] / best["params"]
        if fit.replicas:
            with np.errstate(all="ignore"):
                made = [best_at(one, budget) for one in each_replica(fit)]
            told["intervals"] = {name: interval(np.array([one[name] for one in made]), fit.level) for name in best}
        told["decades_beyond_data"] = extrapolation(fit, told, used)
        fit.optima.append(told)


def _no_optimum(coefficients: Mapping[str, float], budget: float) -> dict[str, float]:
    return {}


def extrapolation(fit: Fit, told: Mapping[str, Any], used: Measured) -> float:
    """Decades by which a budget lies outside the data's compute; a warning where that, or what it asks for, does."""
    far = 0.0
    for role, what in (("flops", "FLOPs"), ("params", "parameters"), ("tokens", "tokens")):
        value = told["budget"] if role == "flops" else told.get(role)
        if role not in used.columns or value is None:
            continue
        low, high = used.columns[role].min(), used.columns[role].max()
        beyond = max(math.log10(value / high), math.log10(low / value), 0.0)
        far = max(far, beyond) if role == "flops" else far
        if beyond > 0.05:
            fit.warnings.append(
                f"budget {told['budget']:.3g}: {what} of {value:.3g} lie {beyond:.1f} decades outside the data "
                f"({low:.3g} to {high:.3g}): this is an extrapolation"
            )
    return far


def _degenerate(law: Law, problem: Problem, theta: np.ndarray) -> list[str]:
    """Coefficients at their bounds, directions that the data do not fix, quantities that go together."""
    found = []
    for index in problem.free:
        one = law.coefficients[index]
        low, high = one.inner_bounds
        if theta[index] <= low + 1e-6 * (1 + abs(low)) or theta[index] >= high - 1e-6 * (1 + abs(high)):
            found.append(f"{one.name} ended at its bound, {law.printed(theta)[index]:.3g}: the data do not fix it")
    columns = problem.columns
    if {"params", "tokens"} <= set(law.reads) and len(problem.logs) > 2:
        n, d = np.log(columns["params"]), np.log(columns["tokens"])
        if n.std() == 0 or d.std() == 0:
            which = "parameters" if n.std() == 0 else "tokens"
            found.append(f"all runs have as many {which}: their term cannot be told from the constant")
        elif abs(np.corrcoef(n, d)[0, 1]) > TOGETHER:
            found.append(
                "parameters and tokens go together in these runs (correlation of their logarithms "
                f"{np.corrcoef(n, d)[0, 1]:.3f}): their terms can hardly be told apart; vary tokens a parameter"
            )
    _, slopes = problem.residuals(theta)
    sizes = np.linalg.norm(slopes, axis=0)
    if len(problem.free) and np.isfinite(slopes).all() and (sizes > 0).all():
        condition = np.linalg.cond(slopes / sizes)
        if condition > 1e5:
            found.append(
                f"some coefficients can trade against others (condition {condition:.1g}): trust predictions, not them"
            )
    return found
