"""How the shards of a split are reached: wherever they are (`data.remote`), whatever their format (`data.plain`)."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from data.cache import Held
from data.config import DataError
from data.manifest import Manifest, Shard
from data.metadata import read_columns
from data.plain import TARS, PlainReader, PlainShard, is_plain, tars_location
from data.remote import Location, ShardStore
from data.shards import OPEN_SHARDS, MappedShard
from data.urls import scheme


class Access:
    """Opens shards of one split. place, manifest: of the corpus. release: lets go of a shard that is open and was not used
    for longest, False if none; called when the cache of shards from elsewhere is too small for all that are open.

    local: whether all are on this machine as they are. most_open: shards that a reader should keep open at most; a share
    of the cache, so that other readers have theirs.
    """

    def __init__(
        self, place: Location, manifest: Manifest, shards: Sequence[Shard], release: Callable[[], bool] | None = None
    ) -> None:
        self._place, self._manifest, self._shards = place, manifest, shards
        self._plain = PlainReader(place.directory, manifest) if is_plain(manifest) else None
        files = {shard.file: (shard.size, shard.sha256) for shard in shards}
        location = _tars(place, manifest) if self._plain else place.location
        self._store = ShardStore(location, files, place.cache, release)
        self.local, self.most_open = self._store.local, OPEN_SHARDS
        if scheme(location):
            largest = max((shard.size for shard in shards), default=1)
            self.most_open = min(OPEN_SHARDS, max(2, place.cache.limit // (8 * largest)))

    def open(self, shard: Shard) -> tuple[MappedShard | PlainShard, Held]:
        """A shard as a line of tokens, and what keeps its file here: close it after the last use of the line."""
        self._place.sidecar(shard.index_file, shard.index_size, shard.index_sha256)
        held = self._store.path(shard.file)
        try:
            if self._plain is not None:
                return self._plain.shard(shard, held.path), held
            return MappedShard(self._place.directory, shard, self._manifest.dtype, held.path), held
        except BaseException:
            held.close()
            raise

    def expect(self, shards: Iterable[int]) -> None:
        """These shards will be read next, in this order: those from elsewhere are fetched in the background."""
        self._store.prefetch([self._shards[number].file for number in shards])

    def check_present(self) -> None:
        """Opens every shard that is on this machine; DataError names one that is missing or not of its recorded size."""
        if self.local:
            for shard in self._shards:
                self.open(shard)[1].close()

    def columns(self, shard: Shard, names: list[str]) -> dict[str, np.ndarray]:
        """Metadata of the documents of a shard, an array [documents] each."""
        self._place.sidecar(shard.meta_file, shard.meta_size, shard.meta_sha256)
        return read_columns(self._place.directory, shard, names)

    def verify(self) -> None:
        """Reads every file of the split whole and compares checksums; DataError names the first that differs."""
        for shard in self._shards:
            self.open(shard)[1].close()  # tells what is missing, or of another size
            with self._store.path(shard.file) as tar:
                index = self._place.sidecar(shard.index_file, shard.index_size, shard.index_sha256)
                meta = self._place.sidecar(shard.meta_file, shard.meta_size, shard.meta_sha256)
                for path, wanted in (
                    (tar, shard.sha256),
                    (index, shard.index_sha256),
                    (meta, shard.meta_sha256),
                ):
                    _compare(path, wanted)


def _compare(path: Path, wanted: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: this part of the corpus is missing; copy the corpus again, or build it again"
        ) from error
    if found != wanted:
        raise DataError(
            f"{path}: its checksum is not the manifest's, some of its bytes changed; copy the corpus again, or build it again"
        )


def _tars(place: Location, manifest: Manifest) -> str:
    """Where the tars of an indexed corpus are; a relative path beside an index at a URL is a URL."""
    relative = str(manifest.spec[TARS])
    if place.local or scheme(relative):
        return tars_location(place.directory, manifest)
    kind, _, rest = place.location.partition("://")
    return f"{kind}://{posixpath.normpath(posixpath.join(rest, relative))}"
