"""Commit through the file system: rank 0 waits for every rank's index, writes the manifest, renames.

There is no collective, so the writer threads can never dead-lock with training, and a rank that died costs the save,
not the run. The other ranks learn the end from the names: the directory under its final name (committed), or a file
under the temporary one (given up, and why).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from parallel.checkpoint.durable import fsync_directory, remove_tree, seal, write_durable
from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.files import Index, data_name, failed_name, index_name, parse_index
from parallel.checkpoint.manifest import MANIFEST, FileEntry, Manifest, read_manifest, tensor_table
from parallel.checkpoint.store import Store

_GRACE = 5.0
"""Seconds that a rename may stay unseen by another machine (network file systems cache names)."""


@dataclass(frozen=True)
class Save:
    """One save of one attempt. Every rank counts its saves, so all ranks name it alike without talking."""

    store: Store
    step: int
    sequence: int
    timeout: float

    @property
    def temporary(self) -> Path:
        return self.store.temporary(self.step, self.sequence)

    @property
    def target(self) -> Path:
        return self.store.path(self.step)

    def begin(self) -> None:
        """Make the temporary directory.

        Raises CheckpointError where rank 0 has already given this save up, or a newer attempt has taken over. A newer
        attempt names itself first and cleans up then, so a directory made too late for the cleaning sees the name.
        """
        try:
            self.temporary.mkdir(exist_ok=True)
        except FileExistsError:
            _check_fence(self)
            raise CheckpointError(given_up(self)) from None
        if self.store.fenced():
            self.store.set_aside(self.temporary)
            _check_fence(self)


def _pauses(timeout: float) -> Iterator[None]:
    """Loop with growing pauses until `timeout` seconds have passed; at least twice."""
    end, pause = time.monotonic() + timeout, 0.002
    yield
    while time.monotonic() < end:
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
        yield


def commit(save: Save, state: dict[str, Any]) -> Manifest:
    """Rank 0: wait for all indexes, write the manifest, give the directory its name.

    Raises CheckpointError where a rank failed or is late, the pieces do not make up whole tensors, or a newer attempt
    has taken over.
    """
    indexes, files = collect(save)
    manifest = Manifest(
        save.step, str(save.store.attempt), save.sequence, time.time(), save.store.world_size, tuple(files),
        tensor_table(indexes), state,
    )  # fmt: skip
    _check_fence(save)
    write_durable(save.temporary / MANIFEST, seal(manifest.body()))
    _check_fence(save)
    # The same step saved again, e.g. after a rewind. A kill between the two renames loses nothing: the next attempt
    # finds the manifest under the temporary name and finishes the commit.
    replaced = save.store.to_trash(save.target) if save.target.exists() else None
    os.rename(save.temporary, save.target)
    fsync_directory(save.store.directory)
    if replaced is not None:
        remove_tree(replaced)
    return manifest


def _check_fence(save: Save) -> None:
    newest = save.store.newest_attempt()
    if newest != save.store.attempt:
        raise CheckpointError(
            f"{save.target}: fenced off by a newer attempt ({newest}; this is {save.store.attempt}); "
            "another job runs this run now, so end this one"
        )


def collect(save: Save) -> tuple[list[Index], list[FileEntry]]:
    """Wait until every rank's index is there and fits its data file; returns them in rank order."""
    indexes: dict[int, Index] = {}
    files: dict[int, list[FileEntry]] = {}
    waiting = set(range(save.store.world_size))
    for _ in _pauses(save.timeout):
        names = _names(save)
        for rank in sorted(waiting):
            if failed_name(rank) in names:
                why = (save.temporary / failed_name(rank)).read_text() or "it could not write; look into its log"
                raise CheckpointError(f"rank {rank} failed: {why}")
            if index_name(rank) in names:
                indexes[rank], files[rank] = _take(save, rank)
                waiting.remove(rank)
        if not waiting:
            return [indexes[rank] for rank in sorted(indexes)], [
                entry for rank in sorted(files) for entry in files[rank]
            ]
    late = ", ".join(map(str, sorted(waiting)[:8]))
    raise CheckpointError(
        f"{save.temporary}: {len(waiting)} of {save.store.world_size} ranks (first: {late}) had not written their part "
        f"after {save.timeout:.0f} s; look into their logs, or raise checkpoint.timeout"
    )


def _names(save: Save) -> set[str]:
    try:
        return set(os.listdir(save.temporary))
    except FileNotFoundError:
        _check_fence(save)
        raise CheckpointError(f"{save.temporary}: removed by somebody while it was written") from None


def _take(save: Save, rank: int) -> tuple[Index, list[FileEntry]]:
    """Read a rank's index and check that it is of this save and its data file is as long as it says."""
    path = save.temporary / index_name(rank)
    raw = path.read_bytes()
    index = parse_index(raw, path)
    expected = (rank, save.store.world_size, save.step, save.store.attempt, save.sequence)
    if (index.rank, index.world_size, index.step, index.attempt, index.sequence) != expected:
        raise CheckpointError(f"{path}: belongs to another save; give the run's processes one attempt and world size")
    size = os.stat(save.temporary / data_name(rank)).st_size
    if size != index.size:
        raise CheckpointError(f"{save.temporary / data_name(rank)}: has {size} bytes, but its rank wrote {index.size}")
    return index, [
        FileEntry(data_name(rank), index.size, index.checksum),
        FileEntry(index_name(rank), len(raw), xxhash.xxh3_128_hexdigest(raw)),
    ]


def await_commit(save: Save) -> None:
    """Other ranks: wait until rank 0 has committed. Raises CheckpointError where it gave up or is silent."""
    for _ in _pauses(save.timeout):
        if not save.temporary.is_dir():
            break
    else:
        raise CheckpointError(f"{save.temporary}: rank 0 did not commit within {save.timeout:.0f} s; look into its log")
    for _ in _pauses(min(_GRACE, save.timeout)):
        if save.temporary.is_file():
            raise CheckpointError(given_up(save))
        with contextlib.suppress(CheckpointError):
            manifest = read_manifest(save.target)
            if (manifest.attempt, manifest.sequence) == (save.store.attempt, save.sequence):
                return
        if save.store.fenced():
            _check_fence(save)
    raise CheckpointError(f"{save.target}: rank 0 did not commit it; look into its log")


def given_up(save: Save) -> str:
    """Rank 0's reason for giving a save up, as it left it for the other ranks."""
    with contextlib.suppress(OSError):
        return save.temporary.read_text() or "rank 0 gave this save up"
    return "rank 0 gave this save up"


def abandon(save: Save, message: str) -> None:
    """Leave nothing of a failed save but a word to the others; never raises, since the disk may be full.

    Rank 0 frees the space and puts a file with the message under the temporary name, so that a rank that comes late
    cannot begin again. Another rank frees its own space and leaves its message for rank 0.
    """
    with contextlib.suppress(OSError):
        if save.store.rank != 0:
            for name in (index_name(save.store.rank), data_name(save.store.rank)):
                (save.temporary / name).unlink(missing_ok=True)
            if save.temporary.is_dir():
                _leave_note(save.temporary / failed_name(save.store.rank), message)
            return
        for _ in range(save.store.world_size):  # a late rank may make the directory anew between the two
            save.store.set_aside(save.temporary)
            if save.store.fenced():
                return
            with contextlib.suppress(IsADirectoryError):
                _leave_note(save.temporary, message)
                return


def _leave_note(path: Path, message: str) -> None:
    """Put a message where others look, whole; on a full disk an empty one, which says enough."""
    draft = path.with_name(f".trash-{path.name}")
    with contextlib.suppress(OSError):
        draft.write_text(message)
    try:
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
