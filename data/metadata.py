"""What is known of each document: a Parquet table beside each shard, a row a document in the order of the shard.

Columns every corpus has: `source` as configured, `path` within it, `row` within the file, `bytes` of UTF-8, `tokens` with
the end-of-document token. The others, the user's own and what cleaning found out, are in the manifest's `columns` with
their types: `int`, `float`, `str`, `bool`. Any tool that reads Parquet reads these tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.config import DataError
from data.manifest import Shard

if TYPE_CHECKING:
    from data.shards import HashedFile

Schema = Mapping[str, str]
"""Types of columns by name: `int`, `float`, `str` or `bool`. Any value may be missing."""

BASE: Schema = {"source": "str", "path": "str", "row": "int", "bytes": "int", "tokens": "int"}
"""The columns of every corpus."""


def type_of(value: Any) -> str | None:
    """The type of a value as a schema calls it; None for a missing one."""
    return None if value is None else type(value).__name__


def join_types(first: str, second: str) -> str:
    """The narrowest type that holds values of both: int and float are float, other mixtures are text."""
    if first == second:
        return first
    return "float" if {first, second} == {"int", "float"} else "str"


class MetadataWriter:
    """Gathers the rows of one shard's documents and writes them as `<shard>.meta.parquet`."""

    def __init__(self, columns: Schema) -> None:
        self._schema = {**BASE, **dict(sorted(columns.items()))}
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[str, list[Any]] = {name: [] for name in self._schema}
        self._totals: dict[str, list[int]] = {}

    def widen(self, columns: Schema) -> None:
        """Takes up columns that are new, and types that hold more."""
        for name, kind in columns.items():
            self._rows.setdefault(name, [None] * len(self._rows["tokens"]))
            self._schema[name] = join_types(self._schema.get(name, kind), kind)

    @property
    def columns(self) -> Schema:
        """Types of the columns that not every corpus has."""
        return {name: kind for name, kind in sorted(self._schema.items()) if name not in BASE}

    def add(self, row: Mapping[str, Any], tokens: int) -> None:
        """A document: its row, with at least source, path, row and bytes, and how many tokens it has."""
        for name, values in self._rows.items():
            values.append(row.get(name))
        self._rows["tokens"][-1] = tokens
        totals = self._totals.setdefault(row["source"], [0, 0, 0])
        totals[0] += 1
        totals[1] += tokens
        totals[2] += row["bytes"]

    def write(self, shard: Path) -> tuple[HashedFile, dict[str, list[int]]]:
        """Writes the table beside the shard; returns its file and documents, tokens and bytes by source."""
        file = _write(shard.with_suffix(".meta.parquet"), self._rows, self.columns)
        totals = dict(sorted(self._totals.items()))
        self._clear()
        return file, totals


def widen_table(path: Path, columns: Schema) -> HashedFile:
    """Writes a table again, with columns that it lacks and types that hold more."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    rows: dict[str, list[Any]] = {name: table.column(name).to_pylist() for name in table.column_names}
    return _write(path, {**{name: [None] * len(table) for name in columns}, **rows}, columns)


def _write(path: Path, rows: Mapping[str, list[Any]], columns: Schema) -> HashedFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.shards import HashedFile

    schema = {**BASE, **dict(sorted(columns.items()))}
    arrow = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
    arrays = [pa.array([_cast(value, kind) for value in rows[name]], arrow[kind]) for name, kind in schema.items()]
    file = HashedFile(path)
    pq.write_table(
        pa.table(arrays, names=list(schema)),
        file,
        compression="zstd",
        use_dictionary=[name for name, kind in schema.items() if kind in ("str", "float")],
        column_encoding={name: "DELTA_BINARY_PACKED" for name, kind in schema.items() if kind == "int"},
        write_statistics=False,
        store_schema=False,
    )
    file.close()
    return file


def _cast(value: Any, kind: str) -> Any:
    if value is None:
        return None
    return float(value) if kind == "float" else str(value) if kind == "str" else value


def read_columns(directory: Path, shard: Shard, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Columns of the documents of a shard, by name, each [documents] in order; DataError names one that is not there.

    int: int64, or float64 with NaN where values are missing. float: float64, NaN where missing. bool: bool, or object
    with None where missing. str: object, None where missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, names = directory / shard.meta_file, list(names)
    try:
        with pq.ParquetFile(path) as file:
            there = file.schema_arrow.names
            missing = [name for name in names if name not in there]
            if missing:
                raise DataError(f"{directory}: no column {missing[0]!r} of metadata; it has {', '.join(there)}")
            table = file.read(columns=names)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: this part of the corpus is missing; copy the corpus again, or build it again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error}); copy the corpus again, or build it again") from error
    return {name: table.column(name).to_numpy() for name in names}
