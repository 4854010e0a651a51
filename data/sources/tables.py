"""Parquet files, and the Arrow files of data sets that Hugging Face datasets saved to disk (`save_to_disk`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data.sources.files import Piece
from data.sources.records import Fields, Problem, Record, record_of

_ROWS = 1024  # at a time: the rows of a batch are Python objects


def damage() -> tuple[type[BaseException], ...]:
    """What pyarrow raises for a damaged file, once it was imported."""
    import sys

    return (sys.modules["pyarrow"].ArrowException,) if "pyarrow" in sys.modules else ()


def _groups(piece: Piece, groups: int) -> range:
    return range(groups * piece.share // piece.shares, groups * (piece.share + 1) // piece.shares)


def first_row(piece: Piece) -> int:
    """The number of the first row of a piece of a Parquet file; 0 for every other format, and for damaged files."""
    if piece.file.format != "parquet" or not piece.share:
        return 0
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(piece.file.file) as table:
            metadata = table.metadata
            return sum(
                metadata.row_group(group).num_rows for group in range(_groups(piece, metadata.num_row_groups).start)
            )
    except (pa.ArrowException, OSError):
        return 0


def read_parquet(piece: Piece, fields: Fields) -> Iterator[Record | Problem]:
    """The rows of the piece's row groups."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(piece.file.file) as table:
        names = _wanted(table.schema_arrow.names, fields)
        if isinstance(names, Problem):
            yield names
            return
        groups = list(_groups(piece, table.num_row_groups))
        if groups:
            for batch in table.iter_batches(batch_size=_ROWS, row_groups=groups, columns=names):
                yield from _rows(batch, fields)


def read_arrow(piece: Piece, fields: Fields) -> Iterator[Record | Problem]:
    """The rows of an Arrow IPC file, in its streaming format (what datasets writes) or its file format (Feather)."""
    import pyarrow as pa

    with pa.memory_map(str(piece.file.file)) as source:
        if source.read(6) == b"ARROW1":
            source.seek(0)
            reader = pa.ipc.open_file(source)
            batches: Iterator[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            source.seek(0)
            reader = pa.ipc.open_stream(source)
            batches = iter(reader)
        names = _wanted(reader.schema.names, fields)
        if isinstance(names, Problem):
            yield names
            return
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield from _rows(batch.slice(start, _ROWS).select(names), fields)


def _wanted(names: list[str], fields: Fields) -> list[str] | Problem:
    """The columns to read; a Problem where there is none with text."""
    if fields.text not in names:
        return Problem(
            "no text field",
            f"no field {fields.text!r} (corpus.text_field); it has {', '.join(map(repr, names)) or 'no fields'}",
        )
    roots = {column.split(".")[0] for column in fields.columns} | set(fields.columns)
    return names if "*" in fields.columns else [name for name in names if name == fields.text or name in roots]


def _rows(batch: Any, fields: Fields) -> Iterator[Record | Problem]:
    names = batch.schema.names
    for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield record_of(dict(zip(names, row, strict=True)), fields)
