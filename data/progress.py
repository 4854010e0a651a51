"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, note); what is counted is said where it is taken."""


def silent(done: int, total: int, note: str) -> None:
    """The progress of who wants none."""
