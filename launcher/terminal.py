"""The console that commands write to."""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 220  # columns where the output is no terminal: a table in a log keeps all of its columns whole


def open_console(*, soft_wrap: bool = False, stderr: bool = False, quiet: bool = False) -> Console:
    """A console of the terminal's width, or of `WIDE` columns in a pipe or file, whatever COLUMNS says: readline, once
    imported, sets that to 80 where there is no terminal.

    soft_wrap: lines are left whole, for the terminal to wrap, where a call of print does not say.
    """
    told = sys.stderr.isatty() if stderr else sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=soft_wrap, stderr=stderr, quiet=quiet, width=None if told else WIDE)
