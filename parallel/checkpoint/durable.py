"""Files that are there after a power cut: write, fsync, rename; and JSON that knows when it was altered.

A sealed file is JSON whose first key is the checksum of every byte after it, so that any altered byte is found; the
fixed prefix before it is compared literally.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import xxhash

from parallel.checkpoint.errors import CheckpointCorrupt, ForeignVersion

FORMAT = "triaxis-checkpoint"
VERSION = 1

_PREFIX = b'{"checksum": "'
_DIGITS = 32


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable; file systems that cannot fsync a directory are let off."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durable(path: Path, data: bytes) -> None:
    """Put `data` at `path` so that a reader sees all of it or none, at any moment of failure."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Opened first: the moment a rank's index is seen, rank 0 may rename the directory.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        with contextlib.suppress(OSError):
            os.fsync(directory)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        os.close(directory)


def remove_tree(path: Path) -> None:
    """Remove a file or directory; what cannot be removed stays, since nobody will take it for a checkpoint."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def seal(body: dict[str, Any]) -> bytes:
    """JSON of `body` with the format's name and version, one top-level key a line, and a checksum of it all."""
    body = {"format": FORMAT, "version": VERSION, **body}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in body.items())
    tail = b'",\n' + lines.encode() + b"\n}\n"
    return _PREFIX + xxhash.xxh3_128_hexdigest(tail).encode() + tail


def unseal(raw: bytes, path: Path) -> dict[str, Any]:
    """The body that `seal` was given.

    Raises CheckpointCorrupt where a byte differs, and ForeignVersion where another format or version sealed it.
    """
    tail = raw[len(_PREFIX) + _DIGITS :]
    whole = raw.startswith(_PREFIX) and raw[len(_PREFIX) : len(_PREFIX) + _DIGITS].decode("latin-1") == (
        xxhash.xxh3_128_hexdigest(tail)
    )
    if not whole:
        raise CheckpointCorrupt(
            f"{path}: damaged, or not a file of Triaxis (its checksum does not fit its {len(raw)} bytes); "
            "use another checkpoint or restore the file"
        )
    body: dict[str, Any] = json.loads(raw)
    if body.get("format") != FORMAT or body.get("version") != VERSION:
        raise ForeignVersion(
            f"{path}: format {body.get('format')!r} version {body.get('version')!r}, but this Triaxis reads "
            f"{FORMAT!r} version {VERSION}; load it with the Triaxis that wrote it"
        )
    return body
