"""Names of places: local paths, http(s) and object stores; and lists of them, as webdataset writes them."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import braceexpand

from data.config import DataError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


def scheme(location: str) -> str:
    """`http`, `s3`, …; empty for a local path, with or without file://."""
    found = _SCHEME.match(location)
    name = found.group(1).lower() if found else ""
    return "" if name == "file" else name


def local_path(location: str) -> Path:
    """The path that a location without a scheme, or with file://, means."""
    assert not scheme(location)
    return Path(location[7:] if location.lower().startswith("file://") else location).expanduser()


def join(location: str, name: str) -> str:
    """The place of a name within a location; a query, as a signed address has, stays at the end."""
    base, mark, query = location.partition("?")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def expand(patterns: tuple[str, ...] | list[str]) -> list[str]:
    """Every location that the patterns mean, in order: `{000000..000123}`, lists joined by `::`, local globs, directories.

    DataError for a pattern that means nothing, that names a location twice, or that would run a command (`pipe:`).
    """
    found: list[str] = []
    for pattern in patterns:
        for part in pattern.split("::"):
            if part.startswith("pipe:"):
                raise DataError(
                    f"{part!r}: shell commands are not run; give the address itself (https://, s3://, gs://, …)"
                )
            found.extend(_expand_one(part))
    again = (
        next((location for location in found if found.count(location) > 1), None)
        if len(set(found)) < len(found)
        else None
    )
    if again is not None:
        raise DataError(f"{again}: named twice, so that its documents would be too; name it once")
    return found


def _expand_one(pattern: str) -> list[str]:
    try:
        locations = list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise DataError(
            f"{pattern!r}: its braces do not match ({error}); write {{000000..000123}} or {{a,b}}"
        ) from error
    found: list[str] = []
    for location in locations:
        if scheme(location):
            found.append(location)
            continue
        path = local_path(location)
        if path.is_dir():
            inside = [str(entry) for entry in sorted(path.glob("**/*.tar"))]
            if not inside:
                raise DataError(f"{location!r}: no .tar file in this directory; correct the path")
            found.extend(inside)
        elif glob.has_magic(str(path)) and not path.exists():
            matches = sorted(glob.glob(str(path), recursive=True))
            if not matches:
                raise DataError(
                    f"{location!r}: no file has such a name (relative to {os.getcwd()}); correct the pattern"
                )
            found.extend(matches)
        else:
            found.append(str(path))
    return found
