"""Reading a checkpoint safely: holding it against removal, and comparing every byte with its checksums."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel.checkpoint.errors import CheckpointCorrupt
from parallel.checkpoint.files import checksum_range
from parallel.checkpoint.manifest import MANIFEST, FileEntry, read_manifest, size_problem


@dataclass(frozen=True)
class FileReport:
    """Result of verifying one file; `problem` is empty where every byte is as committed."""

    name: str
    size: int
    problem: str = ""


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Keep retention, of any process, from removing a checkpoint while it is read. Ends with the process."""
    try:
        file = open(path / MANIFEST, "rb")  # noqa: SIM115 (closed below)
    except OSError:
        yield  # the reader reports what is wrong with it
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def verify_files(path: Path, *, part: int = 0, parts: int = 1) -> list[FileReport]:
    """Compare every byte of a checkpoint's files with the checksums of its manifest. Raises if that is damaged."""
    with hold(path):
        manifest = read_manifest(path)
        return [_verify_file(path, file) for file in manifest.files[part::parts]]


def verify_checkpoint(path: Path, *, part: int = 0, parts: int = 1) -> None:
    """Raises CheckpointCorrupt naming every file of the checkpoint that is not as committed."""
    bad = [
        f"{report.name}: {report.problem}" for report in verify_files(path, part=part, parts=parts) if report.problem
    ]
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise CheckpointCorrupt(f"{path}: {'; '.join(bad[:5])}{more}; use another checkpoint or restore the files")


def _verify_file(path: Path, entry: FileEntry) -> FileReport:
    problem = size_problem(path, entry)
    if not problem:
        try:
            with open(path / entry.name, "rb", buffering=0) as file:
                if checksum_range(file, 0, entry.size) != entry.checksum:
                    problem = "its bytes were altered (checksum differs)"
        except OSError as error:
            problem = f"unreadable ({error.strerror})"
    return FileReport(entry.name, entry.size, problem)
