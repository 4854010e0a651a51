"""The ways in which a checkpoint disappoints."""

from __future__ import annotations

import errno
from pathlib import Path


class CheckpointError(ValueError):
    """Anything a user can cause or cure: the message names the path, what is wrong, and the cure."""


class CheckpointCorrupt(CheckpointError):
    """The bytes on disk are not those that were committed. The one error after which an older checkpoint may serve."""


class ForeignVersion(CheckpointError):
    """A whole checkpoint in a format that this Triaxis does not read; falling back past it would lose progress."""


class NotSaved(CheckpointError):
    """State could not be written: a full disk, a quota, a file system that was away. Later it may go through."""


def describe_os_error(error: OSError, path: Path) -> str:
    """Say an operating-system error in the user's terms, with the cure where one is known."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: disk full or quota reached; free space, lower checkpoint.keep_last, or choose another run.dir"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path}: not writable ({error.strerror}); fix the permissions or choose another run.dir"
    return f"{error.filename or path}: {error.strerror or error}"
