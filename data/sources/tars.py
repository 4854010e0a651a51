"""webdataset tars of text: one document a sample, or a sample of many (`.jsonl`)."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from data.compression import open_bytes
from data.sources.files import Piece
from data.sources.records import Fields, Problem, Record, columns_of, record_of_bytes, record_of_json

DAMAGE = (tarfile.TarError,)
"""What reading a damaged tar raises beside what its compression raises."""

_MEMBERS = ("txt", "json", "jsonl")


def read_tar(piece: Piece, fields: Fields) -> Iterator[Record | Problem]:
    """A document a sample (members that share their name up to the first dot): its `.txt`, with `.json` beside it as
    metadata, else the text field of its `.json`, else one document a line of its `.jsonl`. Samples with none of them
    are not text and are passed over.

    tarfile.TarError where it ends without the zeros that end every tar: then some of it is missing.
    """
    with open_bytes(piece.file.file) as raw:
        counted = _Counted(raw)
        with tarfile.open(fileobj=io.BufferedReader(counted), mode="r|") as tar:
            key: tuple[str, str] | None = None
            parts: dict[str, bytes] = {}
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if not member.isfile():
                    continue
                if (folder, stem) != key:
                    yield from _sample(parts, fields)
                    key, parts = (folder, stem), {}
                if suffix in _MEMBERS:
                    handle = tar.extractfile(member)
                    assert handle is not None  # it is a plain file
                    parts[suffix] = handle.read()
                    if len(parts[suffix]) < member.size:
                        raise tarfile.ReadError(f"it ends within {member.name}")
            yield from _sample(parts, fields)
            if counted.position <= tar.offset:
                raise tarfile.ReadError("it ends without an end mark")


class _Counted(io.RawIOBase):
    """A stream that knows how much was read of it."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self.position = stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read1(len(view))
        view[: len(data)] = data
        self.position += len(data)
        return len(data)


def _sample(parts: dict[str, bytes], fields: Fields) -> Iterator[Record | Problem]:
    if "txt" in parts:
        yield _with_metadata(record_of_bytes(parts["txt"]), parts.get("json"), fields)
    elif "json" in parts:
        yield record_of_json(parts["json"], fields)
    elif "jsonl" in parts:
        yield from (record_of_json(line, fields) for line in parts["jsonl"].splitlines() if line.strip())


def _with_metadata(found: Record | Problem, data: bytes | None, fields: Fields) -> Record | Problem:
    import json

    if data is None or isinstance(found, Problem) or not fields.columns:
        return found
    try:
        values = json.loads(data)
    except ValueError as error:
        return Problem("not JSON", f"the metadata beside the text: {error}", found.text)
    return Record(found.text, columns_of(values, fields)) if isinstance(values, dict) else found
