"""A document: text on its way to becoming tokens, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field

Scalar = int | float | str | bool | None
"""What a column of metadata may hold."""


@dataclass(frozen=True)
class Document:
    """text and where it came from: source as configured, path relative to it, row within the file from 0.

    columns: the user's own metadata and what cleaning found out, by name.
    """

    text: str
    source: str
    path: str
    row: int = 0
    columns: dict[str, Scalar] = field(default_factory=dict)
