"""A fit on the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from launcher.laws.result import Fit, Interval
from launcher.terminal import new_table, open_console, warn


def show(fit: Fit, console: Console | None = None) -> None:
    """Coefficients, errors, optima and warnings."""
    console = console or open_console(soft_wrap=True)
    console.print(f"{fit.title}: {fit.formula}", style="bold")
    console.print(f"{fit.rows} rows of {fit.data}  ({fit.source})")
    used = ", ".join(f"{role} {name}" for role, name in fit.columns.items())
    console.print(f"columns  {used}")
    _coefficients(fit, console)
    _errors(fit, console)
    for told in fit.optima:
        console.print(optimum_text(told))
    for name, found in fit.extra.items():
        text = _penalty(found) if name.startswith("penalty") else extra_text(found)
        console.print(f"{name.replace('_', ' ')}  {text}")
    for text in fit.notes:
        console.print(f"note  {text}")
    for text in fit.warnings:
        warn(console, text)


def _coefficients(fit: Fit, console: Console) -> None:
    told = f"{100 * fit.level:g} % interval, {fit.bootstraps} resamples" if fit.intervals else ""
    table = new_table("", "coefficient", "value", *([told] if told else []))
    for name, value in {**fit.coefficients, **fit.derived}.items():
        cells = [span_text(fit.intervals[name])] if fit.intervals and name in fit.intervals else [""] if told else []
        table.add_row(name, digits(value), *cells)
    console.print(table)


def _errors(fit: Fit, console: Console) -> None:
    if fit.objective is not None:
        console.print(f"objective  {fit.objective:.6g} ({fit.objective_is})")
    if fit.errors:
        console.print(f"error  {_error(fit.errors)} of the rows fitted")
    if fit.held_out:
        console.print(f"held out  {_error(fit.held_out)} of {fit.held_out['how']}")
        for one in fit.held_out.get("runs", [])[:40]:
            console.print(
                f"  {one['name']}: {one['loss']:.4f}, predicted {one['predicted']:.4f}, off by {100 * one['error']:.4f} %",
            )


def _error(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.3f} % mean, {100 * found['max']:.3f} % largest"


def _penalty(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.4f} % mean, {100 * found['max']:.4f} % largest of {found['groups']} pairs (N, D)"


def optimum_text(told: dict[str, Any]) -> str:
    """A budget and its best split in words."""
    spans = told.get("intervals", {})
    parts = [
        f"{name.replace('_', ' ')} {digits(value)}" + (f" ({span_text(spans[name])})" if name in spans else "")
        for name, value in told.items()
        if name not in ("budget", "intervals", "decades_beyond_data") and isinstance(value, (int, float))
    ]
    return f"budget {told['budget']:.3g} FLOPs: " + ", ".join(parts)


def extra_text(found: Any) -> str:
    """What a law tells besides, in words."""
    if isinstance(found, dict):
        return ", ".join(f"{name.replace('_', ' ')} {extra_text(value)}" for name, value in found.items())
    if isinstance(found, list):
        return f"{len(found)} of them"
    return digits(found) if isinstance(found, float) else str(found)


def span_text(span: Interval) -> str:
    """Both ends."""
    return f"{digits(span[0])} to {digits(span[1])}"


def digits(value: float) -> str:
    """Five digits that count."""
    return f"{value:,.5g}" if 1e-3 <= abs(value) < 1e7 or value == 0 else f"{value:.4e}"
