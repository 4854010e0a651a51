"""A corpus where it is: a local directory, or a URL whose shards pass through a bounded cache.

`open_location` gives a place; its small files (manifest, tokenizer, indexes, metadata, orderings) come by `sidecar` and are
kept always, in a directory of their own for each state of a corpus's manifest; shards come by a `ShardStore`, which
fetches ahead what it is told will be read next. For a local directory both are the identity.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from data.cache import Entry, FileCache, Held, NoRoomError
from data.config import DataError
from data.download import Stopped, download
from data.locks import alone, pulse
from data.manifest import MANIFEST
from data.stream_config import CacheConfig
from data.urls import join, local_path, scheme

__all__ = ["CacheConfig", "Held", "Location", "ShardStore", "home_of", "open_location"]

ORIGIN = "origin.json"
"""Beside the small files of a corpus from a URL: which URL."""

Files = Mapping[str, tuple[int, str]]
"""Size in bytes and SHA-256 of files, by name within a location."""


def open_location(location: str | Path, cache: CacheConfig | None = None) -> Location:
    """A corpus at a path or URL, or at the directory of an opened one, which stands for its URL wherever a path is wanted.

    DataError when there is none, or when a server does not give its manifest."""
    text = str(location)
    if not scheme(text):
        directory = local_path(text)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = str(json.loads((directory / ORIGIN).read_text(encoding="utf-8"))["location"])
        return Location(text, directory, cache or CacheConfig())
    cache = cache or CacheConfig()
    kept = FileCache(cache).root / "kept"
    kept.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".opening-", dir=kept) as scratch:
        arrived = Path(scratch) / MANIFEST
        _, digest = download(join(text, MANIFEST), arrived, cache)
        _check_manifest(text, arrived)
        # A directory for each state of the manifest: what is kept beside it belongs to it and never changes.
        directory = kept / hashlib.sha256(f"{text}\0{digest}".encode()).hexdigest()[:32]
        directory.mkdir(exist_ok=True)
        (Path(scratch) / ORIGIN).write_text(json.dumps({"location": text}) + "\n", encoding="utf-8")
        os.rename(Path(scratch) / ORIGIN, directory / ORIGIN)
        os.rename(arrived, directory / MANIFEST)
    place = Location(text, directory, cache)
    _bring_tokenizer(place)
    return place


def home_of(location: str | Path, cache: CacheConfig | None = None) -> Path:
    """The directory on this machine that has a corpus's manifest, tokenizer and what else is small."""
    return open_location(location, cache).directory


def _bring_tokenizer(place: Location) -> None:
    """The files of a corpus's tokenizer, which `data.tokenizers` checks when it reads them."""
    about = place.sidecar("tokenizer/triaxis_tokenizer.json")
    try:
        byte = json.loads(about.read_text(encoding="utf-8"))["kind"] == "byte"
    except (ValueError, KeyError, TypeError):
        byte = False
    if byte:
        return
    try:
        place.sidecar("tokenizer/tokenizer.json")
    except DataError:  # a SentencePiece model has none; where neither comes, the second failure is told
        place.sidecar("tokenizer/tokenizer.model")


def _check_manifest(location: str, path: Path) -> None:
    """That what came may be a manifest; `Manifest.load` checks the rest."""
    try:
        whole = isinstance(json.loads(path.read_text(encoding="utf-8")), dict)
    except ValueError:
        whole = False
    if not whole:
        raise DataError(
            f"{join(location, MANIFEST)}: the server sent {path.stat().st_size} bytes that are no manifest (a login or an "
            "error page?); give the address of a corpus, the directory that holds manifest.json"
        )


class Location:
    """An opened place. location: as it was given. directory: where its small files are, or come to, on this machine."""

    def __init__(self, location: str, directory: Path, cache: CacheConfig) -> None:
        self.location, self.directory, self.cache = location, directory, cache
        self.local = not scheme(location)

    def sidecar(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A small file, which is kept. size and sha256: what they must be; None where the reader checks the contents itself.

        DataError when it cannot be had; of a local one nothing is checked."""
        path = self.directory / name
        if self.local or path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self.directory / ".part"  # one at a time, under the lock
        with alone(self.directory / ".lock", self.cache.patience, lambda: pulse(part)):
            if not path.exists():
                download(join(self.location, name), part, self.cache, size=size, sha256=sha256)
                os.rename(part, path)
        return path


class ShardStore:
    """Shards of one location as local files.

    location: path or URL of the directory that holds them. files: their sizes and checksums by name. release: called when
    the cache is too small for all that is in use at once; lets go of a shard that is held and not needed, False if none.
    Methods may be called from several threads.
    """

    def __init__(
        self,
        location: str,
        files: Files,
        cache: CacheConfig | None = None,
        release: Callable[[], bool] | None = None,
    ) -> None:
        self.location, self._release = location, release
        self._directory = None if scheme(location) else local_path(location)
        self.local = self._directory is not None
        self._entries = {name: Entry(join(location, name), *about) for name, about in files.items()}
        self._config = cache or CacheConfig()
        self._cache = FileCache(self._config) if self._directory is None else None
        self._changed = threading.Condition()
        self._wanted: list[str] = []  # of what was asked for ahead, what was neither fetched ahead nor read
        self._soon: list[Entry] = []  # of what was asked for ahead, what was not read
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def path(self, name: str) -> Held:
        """The shard as a local file: `with store.path(name) as path`, or `.path` until `.close()`; fetched if need be.

        DataError names a shard that no attempt brought whole, and why.
        """
        if self._cache is None:
            assert self._directory is not None
            return Held(self._directory / name)
        entry = self._entries[name]
        held = self._cache.hold(
            entry,
            functools.partial(self._fetch, entry),
            ahead=self._ahead,
            release=self._release,
            closed=self._room,
        )
        with self._changed:
            self._soon = [other for other in self._soon if other.sha256 != entry.sha256]
            self._wanted = [other for other in self._wanted if other != name]
        return held

    def prefetch(self, names: Sequence[str]) -> None:
        """Fetch these shards in the background, in this order; what was asked for before and is not among them is dropped.

        What does not fit beside those before it waits until they have been read. A failure is told by `path`,
        which tries again.
        """
        if self._cache is None:
            return
        with self._changed:
            self._wanted = [name for name in names if not self._cache.has(self._entries[name])]
            self._soon = [self._entries[name] for name in names]
            while len(self._threads) < self._config.parallel_downloads:
                # daemons: a run that dies must not wait for a server
                self._threads.append(threading.Thread(target=self._run, name="shards ahead", daemon=True))
                self._threads[-1].start()
            self._changed.notify_all()

    def close(self) -> None:
        """End fetching ahead; what is held stays so."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(2 * self._config.timeout_seconds)

    def __enter__(self) -> ShardStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _room(self) -> None:
        """A shard was let go of: there may be room for one that waits."""
        with self._changed:
            self._changed.notify_all()

    def _ahead(self) -> list[Entry]:
        with self._changed:
            return self._soon

    def _fetch(self, entry: Entry, part: Path, stop: threading.Event | None = None) -> None:
        download(entry.name, part, self._config, size=entry.size, sha256=entry.sha256, stop=stop)

    def _run(self) -> None:
        """One thread that fetches ahead."""
        assert self._cache is not None
        while True:
            with self._changed:
                while not self._stop.is_set() and not self._wanted:
                    self._changed.wait()
                if self._stop.is_set():
                    return
                name = self._wanted.pop(0)
            entry = self._entries[name]
            try:
                fetch = functools.partial(self._fetch, entry, stop=self._stop)
                self._cache.hold(entry, fetch, ahead=self._ahead, urgent=False, closed=self._room).close()
            except NoRoomError:
                self._wait_for_room(name)
            except (DataError, Stopped):
                continue  # whoever needs the shard tries again, and tells

    def _wait_for_room(self, name: str) -> None:
        """Until something was read or asked for anew; then the name is first again, if it is still wanted."""
        entry = self._entries[name]
        with self._changed:
            if entry in self._soon and not self._stop.is_set():
                self._changed.wait(self._config.timeout_seconds)
            if entry in self._soon and name not in self._wanted:
                self._wanted.insert(0, name)
