"""The console that commands write to."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 220  # columns where the output is no terminal: a table in a log keeps all of its columns whole


def open_console(*, soft_wrap: bool = False, stderr: bool = False, quiet: bool = False) -> Console:
    """A console of the terminal's width, or of `WIDE` columns in a pipe or file, whatever COLUMNS says: readline, once
    imported, sets that to 80 where there is no terminal. Brackets are brackets: what is told holds paths and errors of
    others, which may look like markup; `rich.text.Text` has style.

    soft_wrap: lines are left whole, for the terminal to wrap, where a call of print does not say.
    """
    told = sys.stderr.isatty() if stderr else sys.stdout.isatty()
    return Console(
        highlight=False, markup=False, soft_wrap=soft_wrap, stderr=stderr, quiet=quiet, width=None if told else WIDE
    )


def new_table(title: str, *columns: str) -> Table:
    """An empty table whose first column is words and whose others are figures."""
    found = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        found.add_column(column, justify="left" if number == 0 else "right")
    return found


def warn(console: Console, text: str) -> None:
    """A line that stands out by its first word."""
    console.print(Text.assemble(("warning", "yellow"), "  ", text))


def verdict(reached: bool, goal: str) -> Text:
    """A cell for a goal that was measured."""
    return Text(goal, "green") if reached else Text(f"{goal} missed", "yellow")
