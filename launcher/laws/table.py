"""What laws are fitted to, as a table: any CSV, JSON lines, a sweep of ours, or a directory of runs."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.laws.form import LawError

DELIMITERS = (",", "\t", ";", "|")
_SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_MISSING = {"", "nan", "none", "null", "na", "n/a", "-"}
_CONDITION = re.compile(r"^\s*(?P<name>.+?)\s*(?P<sign><=|>=|!=|=|<|>)\s*(?P<value>.*?)\s*$")


@dataclass(frozen=True)
class Table:
    """Rows by name of column. place: where they come from. Texts are as they were written."""

    place: str
    rows: tuple[dict[str, str], ...]

    @property
    def names(self) -> list[str]:
        """Names of all columns, in order."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def numbers(self, name: str) -> np.ndarray:
        """A column as numbers (n,); NaN where a row has none. LawError for what is neither number nor missing."""
        return np.array([self._number(row.get(name, ""), name) for row in self.rows])

    def numeric(self, name: str) -> bool:
        """Whether a column holds numbers alone, and some."""
        found = [number(row.get(name, "")) for row in self.rows]
        return None not in found and not all(value is None or math.isnan(value) for value in found)

    def _number(self, text: str, name: str) -> float:
        value = number(text)
        if value is None:
            raise LawError(f"{self.place}: column {name} holds {text!r}, which is no number; choose another column")
        return value

    def where(self, text: str, option: str = "--where") -> Table:
        """Rows for which a condition holds: `dataset=c4, params<1e9`; alternatives are separated by `|`."""
        holds = condition(text, self.names, option)
        return replace(self, rows=tuple(row for row in self.rows if holds(row)))


def number(text: str) -> float | None:
    """`1,234`, `7B`, `1e9` or `2.5` as a number; NaN where nothing is said, None where it is something else."""
    text = text.strip()
    if text.lower() in _MISSING:
        return math.nan
    plain = re.sub(r"(?<=\d),(?=\d{3}(\D|$))", "", text).replace("_", "")
    try:
        return float(plain)
    except ValueError:
        pass
    try:
        return float(plain[:-1]) * _SUFFIXES[plain[-1].lower()]
    except (ValueError, KeyError, IndexError):
        return None


def condition(text: str, names: Sequence[str], option: str) -> Callable[[dict[str, str]], bool]:
    """Whether a row fulfils `name=value, other<value | …`: commas join, bars separate alternatives."""
    alternatives = [[_comparison(part, names, option) for part in one.split(",")] for one in text.split("|")]
    return lambda row: any(all(holds(row) for holds in one) for one in alternatives)


def _comparison(text: str, names: Sequence[str], option: str) -> Callable[[dict[str, str]], bool]:
    found = _CONDITION.match(text)
    if not found:
        raise LawError(f"{option}: {text.strip()!r} is no condition; write column=value, column<value or column!=value")
    name, sign, value = found["name"], found["sign"], found["value"].strip("'\"")
    if name not in names:
        raise LawError(f"{option}: no column {name}; there are {', '.join(names)}")
    wanted = number(value)
    if sign not in ("=", "!=") and (wanted is None or math.isnan(wanted)):
        raise LawError(f"{option}: {text.strip()!r} compares with {value!r}, which is no number")

    def holds(row: dict[str, str]) -> bool:
        have = row.get(name, "")
        real = number(have)
        if wanted is None or real is None or math.isnan(wanted):
            equal = have.strip() == value
            return equal if sign == "=" else not equal if sign == "!=" else False
        return bool({"=": real == wanted, "!=": real != wanted, "<": real < wanted, ">": real > wanted,
                     "<=": real <= wanted, ">=": real >= wanted}[sign])  # fmt: skip

    return holds


def read_table(place: str) -> Table:
    """The rows of a file or directory. LawError where there are none."""
    path = Path(place).expanduser()
    if path.is_dir():
        from launcher.laws.runs import runs_table

        table = Table(place, tuple(runs_table(path)))
    elif not path.is_file():
        raise LawError(f"{place}: no such file or directory; name a CSV, JSON lines, a sweep or a directory of runs")
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise LawError(f"{place}: is no text in UTF-8; save it as CSV or JSON lines") from None
        lines = [line for line in text.splitlines() if line.strip()]
        rows = _json_rows(place, text, lines) if text.lstrip()[:1] in ("{", "[") else _csv_rows(place, lines)
        table = Table(place, tuple(rows))
    if not table.rows:
        raise LawError(f"{place}: holds no rows; a header and at least a line a run are needed")
    return table


def _json_rows(place: str, text: str, lines: Sequence[str]) -> list[dict[str, str]]:
    try:
        records = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except ValueError as error:
        raise LawError(f"{place}: is no JSON lines ({error}); write an object a line, or an array of them") from None
    if not all(isinstance(record, dict) for record in records):
        raise LawError(f'{place}: every line must be an object such as {{"params": 1e8, "tokens": 2e9, "loss": 3.1}}')
    return [flat(record) for record in records]


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """A record as texts, nested names joined by dots; lists are left out."""
    found: dict[str, str] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found.update(flat(value, f"{prefix}{name}."))
        elif not isinstance(value, list):
            found[f"{prefix}{name}"] = "" if value is None else repr(value) if isinstance(value, float) else str(value)
    return found


def _csv_rows(place: str, lines: Sequence[str]) -> list[dict[str, str]]:
    """Rows by the delimiter that gives every line as many cells as the header, the most of them."""
    best: tuple[int, list[list[str]]] = (0, [])
    for delimiter in DELIMITERS:
        cells = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
        wide = len(cells[0]) if cells else 0
        if wide > best[0] and all(len(row) <= wide for row in cells[:50]):
            best = (wide, cells)
    wide, cells = best
    if wide < 2:
        raise LawError(f"{place}: no delimiter of {' '.join(map(repr, DELIMITERS))} gives two columns; name a CSV")
    header = [name.strip() or f"column {index + 1}" for index, name in enumerate(cells[0])]
    if len(set(header)) < len(header):
        double = sorted({name for name in header if header.count(name) > 1})
        raise LawError(f"{place}: two columns are called {', '.join(double)}; rename one")
    return [dict(zip(header, row, strict=False)) for row in cells[1:]]


def join(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    """Records of ours as rows of a table."""
    return [flat(row) for row in rows]
