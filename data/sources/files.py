"""The inventory of a corpus: which files its sources name, in what order, and of which format each is."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data import stdlib
from data.compression import SUFFIXES
from data.config import DataError

TEXT_SUFFIXES = frozenset(
    (
        *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".css"),
        *(".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".py", ".pyi", ".c", ".h", ".cc", ".cpp"),
        *(".hpp", ".cu", ".java", ".kt", ".scala", ".js", ".ts", ".jsx", ".tsx", ".go", ".rs", ".rb", ".php", ".pl"),
        *(".lua", ".sh", ".sql", ".r", ".jl", ".hs", ".ml", ".swift", ".el", ".lisp", ".clj", ".f90", ".m", ".cmake"),
    )
)
"""What a directory search takes as plain text, one document a file. A file named outright may end in anything."""

SPLITTABLE = ("jsonl", "parquet")
"""Formats of which a part of a file can be read without the rest; a .jsonl only when it is not compressed."""

_DATASET_FILES = frozenset({"dataset_info.json", "state.json", "dataset_dict.json"})
_MARKS = frozenset({"state.json", "dataset_dict.json"})


@dataclass(frozen=True)
class SourceFile:
    """One file of the inventory: where it is, its name relative to the source, its format and size in bytes."""

    source: str
    file: Path
    path: str
    format: str
    size: int


@dataclass(frozen=True)
class Piece:
    """Share `share` of `shares` of a file (its lines or row groups that begin there); most files are one piece."""

    file: SourceFile
    share: int = 0
    shares: int = 1

    @property
    def size(self) -> int:
        """Bytes of the file in this piece, about."""
        return self.file.size * (self.share + 1) // self.shares - self.file.size * self.share // self.shares


def list_files(sources: tuple[str, ...]) -> list[SourceFile]:
    """All files of the sources, source by source, sorted by name within each; DataError for one with none."""
    files: list[SourceFile] = []
    for source in sources:
        found = _list_stdlib() if source == stdlib.NAME else _list_source(source)
        if not found:
            raise DataError(
                f"corpus.sources: {source!r} holds no text (looked for text files, .jsonl, .parquet, .warc, .wet, .tar "
                "and data sets saved by Hugging Face datasets; plain, .gz, .zst, .bz2 and .xz); correct the path"
            )
        files.extend(found)
    return files


def inventory_hash(files: list[SourceFile]) -> str:
    """Hash of names and sizes: tells whether the inputs changed since a build. No dates: a copy changes them."""
    rows = "\n".join(f"{file.source}\t{file.path}\t{file.format}\t{file.size}" for file in files)
    return hashlib.sha256(rows.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def cut_file(file: SourceFile, size: int) -> list[Piece]:
    """The file in pieces of about `size` bytes where its format allows, else whole."""
    compressed = file.format == "jsonl" and file.file.suffix.lower() in SUFFIXES
    if file.format not in SPLITTABLE or compressed or file.size <= size:
        return [Piece(file)]
    shares = -(-file.size // size)
    return [Piece(file, share, shares) for share in range(shares)]


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
        # A folder that datasets' save_to_disk wrote: its .json files describe the data and are not text of it.
        left_out = _DATASET_FILES if _MARKS & set(files) else frozenset()
        yield from (Path(directory, name) for name in files if not name.startswith(".") and name not in left_out)


def _format(file: Path) -> str | None:
    """Format by name; None for what a directory search leaves out."""
    name = file.name.lower()
    plain = os.path.splitext(name)[0] if name.endswith(SUFFIXES) else name
    if plain.endswith(".tar") or name.endswith(".tgz"):
        return "tar"
    if plain.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if plain.endswith((".warc", ".wet")):
        return "warc"
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".arrow"):
        return "arrow"
    return "text" if os.path.splitext(plain)[1] in TEXT_SUFFIXES else None
