"""Documents of one piece of an inventory, whatever its format; what cannot be used is quarantined and never fatal.

A damaged file (truncated, not what its name says) gives the records before the damage, then one quarantined record that
names it: what was whole is not lost, and nothing is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data import stdlib
from data.compression import DAMAGE, open_bytes
from data.document import Document
from data.sources import tables, tars, web
from data.sources.files import Piece
from data.sources.records import EXCERPT, Fields, Problem, Record, is_unicode, record_of_bytes, record_of_json

__all__ = ["DAMAGED", "Fields", "Quarantined", "read_piece"]

DAMAGED = "damaged file"
"""Reason of the record that stands for all that could not be read behind it."""


@dataclass(frozen=True)
class Quarantined:
    """A record that cannot be used: where it was, why (`reason` is one of a few, `detail` exact), how it begins."""

    source: str
    path: str
    row: int
    reason: str
    detail: str
    excerpt: str


def read_piece(piece: Piece, fields: Fields) -> Iterator[Document | Quarantined]:
    """Every record of the piece in order. Rows are counted from where the piece begins; a piece of a .jsonl file that
    is not its first has the byte after its path, as in `dump.jsonl@268435456`."""
    file = piece.file
    path = file.path
    if piece.share and file.format == "jsonl":
        path = f"{path}@{_cut_at(piece, piece.share)}"
    row = -1
    try:
        for row, found in enumerate(_READERS[file.format](piece, fields), start=tables.first_row(piece)):
            if isinstance(found, Record) and not is_unicode(found.text):
                found = Problem("undecodable", "the text holds half of a surrogate pair", repr(found.text))
            if isinstance(found, Problem):
                yield Quarantined(file.source, path, row, found.reason, found.detail, found.excerpt[:EXCERPT])
            else:
                yield Document(found.text, file.source, path, row, found.columns)
    except (*DAMAGE, *tars.DAMAGE, *tables.damage()) as error:  # type: ignore[misc]
        detail = f"{file.file}: cannot be read to its end ({error}); repair it or take it out"
        yield Quarantined(file.source, path, row + 1, DAMAGED, detail, "")


def _read_text(piece: Piece, _: Fields) -> Iterator[Record | Problem]:
    with open_bytes(piece.file.file) as handle:
        yield record_of_bytes(handle.read())


def _cut_at(piece: Piece, share: int) -> int:
    return piece.file.size * share // piece.shares


def _read_jsonl(piece: Piece, fields: Fields) -> Iterator[Record | Problem]:
    """Lines that begin within the piece: a line belongs to where its first byte is."""
    with open_bytes(piece.file.file) as handle:
        place, stop = 0, None
        if piece.shares > 1:
            place, stop = _cut_at(piece, piece.share), _cut_at(piece, piece.share + 1)
            if place:
                handle.seek(place - 1)
                place += len(handle.readline()) - 1
        for line in handle:
            if stop is not None and place >= stop:
                return
            place += len(line)
            if not line.isspace():
                yield record_of_json(line, fields)


def _read_docstrings(_: Piece, __: Fields) -> Iterator[Record | Problem]:
    yield from map(Record, stdlib.docstrings())


_READERS: dict[str, Callable[[Piece, Fields], Iterator[Record | Problem]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": tables.read_parquet,
    "arrow": tables.read_arrow,
    "tar": tars.read_tar,
    "warc": web.read_warc,
    "docstrings": _read_docstrings,
}
