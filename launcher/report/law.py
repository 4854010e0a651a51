"""The law that a sweep was run for, on its page: coefficients with intervals, what it warns of, its picture."""

from __future__ import annotations

from html import escape
from pathlib import Path

from launcher.report.page import figure_html, notes_html, section_html, table_html
from launcher.report.theme import DARK, LIGHT

OURS = {
    "params": "parameters",
    "tokens": "tokens",
    "flops": "flops",
    "loss": "validation_loss",
    "batch": "batch_tokens",
    "rate": "learning_rate",
}
"""Columns of our runs by role: labels of a sweep's axes may have the same names."""


def law_section(directory: Path, name: str) -> tuple[str, dict[str, bytes]]:
    """(a section of the page, pictures by name); a note where the runs that are done cannot carry the law, nothing where the
    sweep names none."""
    if not name:
        return "", {}
    from launcher.laws.form import LawError
    from launcher.laws.laws import entry
    from launcher.laws.picture import law_picture
    from launcher.laws.result import FitOptions
    from launcher.laws.table import read_table

    title = f"Law: {name}"
    try:
        law = entry(name)
        given = {role: column for role, column in OURS.items() if role in law.reads}
        fit = law.fit(read_table(str(directory)), given, FitOptions())
    except LawError as error:
        return section_html(title, notes_html([f"not fitted: {error}"])), {}
    told = {**fit.coefficients, **fit.derived}
    intervals = fit.intervals or {}
    rows = [
        [one, f"{value:.4g}", "{:.4g} to {:.4g}".format(*intervals[one]) if one in intervals else ""]
        for one, value in told.items()
    ]
    light, dark = (law_picture(fit, theme, "svg") for theme in (LIGHT, DARK))
    content = (
        f"<p>{escape(fit.title)}: {escape(fit.formula)} ({escape(fit.source)}), from {fit.rows} runs.</p>\n"
        + notes_html(fit.warnings)
        + figure_html(f"The law {name} and its runs", light, dark)
        + table_html(["", "value", f"{fit.level:.0%} interval"], rows)
    )
    return section_html(title, content), {"law": law_picture(fit, LIGHT, "png")}
