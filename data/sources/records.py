"""What a reader gives: records with text and fields, or what was wrong with one."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from data.document import Scalar
from data.metadata import BASE

EXCERPT = 400
"""Characters of a bad record that are kept to recognise it by."""

LONGEST = 1000
"""Longer texts are no metadata when all fields are taken: they would be a second corpus."""


@dataclass(frozen=True)
class Fields:
    """What is read of a record: the field with the text, and which others become columns (`*` = all scalars)."""

    text: str = "text"
    columns: tuple[str, ...] = ("*",)


@dataclass(slots=True)
class Record:
    """A text and the columns that come with it."""

    text: str
    columns: dict[str, Scalar] = field(default_factory=dict)


@dataclass(slots=True)
class Problem:
    """A record that cannot be used. reason: one of a few, counted; detail: what exactly; excerpt: of the record."""

    reason: str
    detail: str
    excerpt: str = ""


def record_of(values: Mapping[str, Any], fields: Fields) -> Record | Problem:
    """A record from parsed fields."""
    if fields.text not in values:
        names = ", ".join(map(repr, values)) or "no fields"
        return Problem("no text field", f"no field {fields.text!r} (corpus.text_field); it has {names}", repr(values))
    text = values[fields.text]
    if text is None:
        text = ""
    if not isinstance(text, str):
        detail = f"{fields.text!r} (corpus.text_field) holds {type(text).__name__}, not text"
        return Problem("wrong type", detail, repr(values))
    return Record(text, columns_of(values, fields))


def record_of_json(data: bytes, fields: Fields) -> Record | Problem:
    """A record from JSON text."""
    try:
        values = json.loads(data)
    except UnicodeDecodeError as error:
        return Problem("undecodable", str(error), excerpt_of(data))
    except (ValueError, RecursionError) as error:
        return Problem("not JSON", str(error), excerpt_of(data))
    if not isinstance(values, dict):
        detail = f"no field {fields.text!r} (corpus.text_field): the record is a JSON {type(values).__name__}"
        return Problem("no text field", detail, excerpt_of(data))
    return record_of(values, fields)


def record_of_bytes(data: bytes, columns: dict[str, Scalar] | None = None) -> Record | Problem:
    """A record from UTF-8."""
    try:
        return Record(data.decode(), columns or {})
    except UnicodeDecodeError as error:
        return Problem("undecodable", str(error), excerpt_of(data))


def columns_of(values: Mapping[str, Any], fields: Fields) -> dict[str, Scalar]:
    """The columns that are asked for: scalars, and scalars one level down as `outer.inner`. A name that every corpus
    has of its own (`source`, `path`, …) gets an underscore."""
    if not fields.columns:
        return {}
    found: dict[str, Scalar] = {}
    every = "*" in fields.columns
    for name, value in values.items():
        if name == fields.text:
            continue
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        for key, item in inner.items():
            if not every and key not in fields.columns:
                continue
            scalar = _scalar(item)
            if scalar is None or (key not in fields.columns and isinstance(scalar, str) and len(scalar) > LONGEST):
                continue
            found[f"{key}_" if key in BASE else key] = scalar
    return found


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, str):
        return value if is_unicode(value) else None
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else None


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def excerpt_of(data: bytes) -> str:
    """How the bytes begin, in characters that can be shown."""
    return data[:EXCERPT].decode("utf-8", errors="backslashreplace")
