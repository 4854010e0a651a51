"""Documents out of files: listing what a corpus is made of, and reading each format as (text, where it came from)."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import stdlib
from data.compression import open_bytes
from data.config import DataError
from data.document import Document

TEXT_SUFFIXES = frozenset(
    (
        *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".css"),
        *(".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp"),
        *(".hpp", ".cu", ".java", ".kt", ".scala", ".js", ".ts", ".jsx", ".tsx", ".go", ".rs", ".rb", ".php", ".pl"),
        *(".lua", ".sh", ".sql", ".r", ".jl", ".hs", ".ml", ".swift", ".el", ".lisp", ".clj", ".f90", ".m", ".cmake"),
    )
)
"""What a directory search takes as plain text, one document a file. A file named outright may end in anything."""


@dataclass(frozen=True)
class SourceFile:
    """One file of the inventory: where it is, its name relative to the source, its format and size in bytes."""

    source: str
    file: Path
    path: str
    format: str
    size: int


def list_files(sources: tuple[str, ...]) -> list[SourceFile]:
    """All files of the sources, source by source, sorted by name within each; DataError for one with none."""
    files: list[SourceFile] = []
    for source in sources:
        found = _list_stdlib() if source == stdlib.NAME else _list_source(source)
        if not found:
            raise DataError(
                f"corpus.sources: {source!r} holds no text (looked for text files, .jsonl, .jsonl.gz, .jsonl.zst, "
                ".parquet, .tar); correct the path"
            )
        files.extend(found)
    return files


def inventory_hash(files: list[SourceFile]) -> str:
    """Hash of names and sizes: tells whether the inputs changed since a build. No dates: a copy changes them."""
    rows = "\n".join(f"{file.source}\t{file.path}\t{file.format}\t{file.size}" for file in files)
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def read_documents(file: SourceFile, text_field: str, skipped: Counter[str]) -> Iterator[Document]:
    """The documents of one file, in order. What cannot be used is counted in `skipped` as `undecodable` or `empty`.

    DataError names the file, and the row where there is one, when the file is damaged or has no `text_field`.
    """
    try:
        for row, text in enumerate(_READERS[file.format](file, text_field)):
            if text is None or not _is_unicode(text):
                skipped["undecodable"] += 1
            elif not text.strip():
                skipped["empty"] += 1
            else:
                yield Document(text, file.source, file.path, row)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"{file.file}: cannot be read to its end ({error}); repair it or take it out") from error


def _list_source(source: str) -> list[SourceFile]:
    """Files of a path or glob: a directory is searched recursively, hidden names left out."""
    path = Path(source).expanduser()
    if path.exists():
        roots = [path]
    elif glob.has_magic(source):
        roots = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    else:
        raise DataError(f"corpus.sources: {source!r} does not exist; correct the path (relative to {Path.cwd()})")
    # Names are relative to the directory that all matches share: they must not tell where a corpus was built.
    base = path if path.is_dir() else Path(os.path.commonpath([str(root.parent) for root in roots] or [""]))
    files: dict[Path, SourceFile] = {}
    for root in roots:
        for file in _walk(root) if root.is_dir() else [root]:
            format_ = _format(file) or ("text" if not root.is_dir() else None)
            if format_:
                name = os.path.relpath(file, base)
                files.setdefault(file, SourceFile(source, file, name, format_, file.stat().st_size))
    return sorted(files.values(), key=lambda file: file.path)


def _list_stdlib() -> list[SourceFile]:
    files = [SourceFile(stdlib.NAME, file, path, "text", size) for file, path, size in stdlib.source_files()]
    return [*files, SourceFile(stdlib.NAME, Path("docstrings"), "docstrings", "docstrings", 0)]


def _walk(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(directory, name) for name in files if not name.startswith("."))


def _format(file: Path) -> str | None:
    """Format by name; None for what a directory search leaves out."""
    name = file.name.lower()
    plain = name.removesuffix(".gz").removesuffix(".zst").removesuffix(".tgz")
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return "tar"
    if plain.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if name.endswith(".parquet"):
        return "parquet"
    return "text" if os.path.splitext(plain)[1] in TEXT_SUFFIXES else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _read_text(file: SourceFile, _: str) -> Iterator[str | None]:
    with open_bytes(file.file) as handle:
        yield _decode(handle.read())


def _read_jsonl(file: SourceFile, field: str) -> Iterator[str | None]:
    with open_bytes(file.file) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield _json_text(line, field, f"{file.file}, line {number}")


def _read_parquet(file: SourceFile, field: str) -> Iterator[str | None]:
    import pyarrow as pa  # only needed for this format
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.file) as table:
            if field not in table.schema_arrow.names:
                raise DataError(_no_field(str(file.file), field, table.schema_arrow.names))
            for batch in table.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    if value is not None and not isinstance(value, str):
                        raise DataError(f"{file.file}: column {field!r} (corpus.text_field) holds no text")
                    yield value or ""
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _read_tar(file: SourceFile, field: str) -> Iterator[str | None]:
    """One document a webdataset sample (members that share their name up to the first dot): `.txt`, else `.json`."""
    with tarfile.open(file.file, "r:*") as tar:
        key: tuple[str, str] | None = None
        parts: dict[str, bytes] = {}
        for member in tar:
            folder, _, base = member.name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not member.isfile():
                continue
            if (folder, stem) != key:
                yield from _sample_text(parts, field, f"{file.file}, sample {key}")
                key, parts = (folder, stem), {}
            if suffix in ("txt", "json"):
                handle = tar.extractfile(member)
                assert handle is not None  # it is a plain file
                parts[suffix] = handle.read()
        yield from _sample_text(parts, field, f"{file.file}, sample {key}")


def _sample_text(parts: dict[str, bytes], field: str, where: str) -> Iterator[str | None]:
    if "txt" in parts:
        yield _decode(parts["txt"])
    elif "json" in parts:
        yield _json_text(parts["json"], field, where)


def _json_text(data: bytes, field: str, where: str) -> str | None:
    text = _decode(data)
    if text is None:
        return None
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); repair it or take it out") from error
    if not isinstance(value, dict) or field not in value:
        raise DataError(_no_field(where, field, list(value) if isinstance(value, dict) else []))
    found = value[field]
    if found is not None and not isinstance(found, str):
        raise DataError(f"{where}: {field!r} (corpus.text_field) holds {type(found).__name__}, not text")
    return found or ""


def _no_field(where: str, field: str, names: list[str]) -> str:
    return f"{where}: no field {field!r} (corpus.text_field); it has {', '.join(map(repr, names)) or 'no fields'}"


def _read_docstrings(_: SourceFile, __: str) -> Iterator[str | None]:
    yield from stdlib.docstrings()


_READERS: dict[str, Callable[[SourceFile, str], Iterator[str | None]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "tar": _read_tar,
    "docstrings": _read_docstrings,
}
