"""A bounded cache of files on a local disk that all processes of a node share.

    <directory>/files/<sha256>        a whole file: it got this name when its size and checksum were right
    <directory>/files/<sha256>.part   one on its way, as long as it will be: its space is taken from the start
    <directory>/locks/<sha256>        who reads a file holds this lock shared, who fetches or evicts it, alone
    <directory>/locks/room            held while room is made

A file is named by its contents, so one that changed at its address is another file, two addresses of one file share it,
and no two workers collide. The kernel lets go of a lock when its process dies: what a crashed process was fetching is then
found to be nobody's, and removed. Locks are flock's, which a forked child shares with its parent.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data.config import DataError
from data.locks import Patience, alone, pulse, take
from data.stream_config import CacheConfig


@dataclass(frozen=True)
class Entry:
    """A file as the cache knows it. name: for messages. size: bytes. sha256: its name in the cache."""

    name: str
    size: int
    sha256: str


class Held:
    """A local file that stays where it is until `close`, or the end of a `with` block, which gives its path."""

    def __init__(self, path: Path, lock: IO[bytes] | None = None, closed: Callable[[], None] | None = None) -> None:
        self.path, self._lock, self._closed = path, lock, closed

    def close(self) -> None:
        """Let go of the file; it must not be used any more."""
        if self._lock is not None and not self._lock.closed:
            self._lock.close()
            if self._closed is not None:
                self._closed()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


class NoRoomError(Exception):
    """There is no room now for a file that need not come now."""


class FileCache:
    """The cache in one process. Methods may be called from several threads."""

    def __init__(self, config: CacheConfig) -> None:
        self.config, self.root = config, config.root
        self._files, self._locks = self.root / "files", self.root / "locks"
        self._patience = config.patience
        try:
            for directory in (self._files, self._locks):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def has(self, entry: Entry) -> bool:
        """Whether the file is here, whole."""
        try:
            return (self._files / entry.sha256).stat().st_size == entry.size
        except FileNotFoundError:
            return False

    def hold(
        self,
        entry: Entry,
        fetch: Callable[[Path], None],
        *,
        ahead: Callable[[], Sequence[Entry]] = tuple,
        urgent: bool = True,
        release: Callable[[], bool] | None = None,
        closed: Callable[[], None] | None = None,
    ) -> Held:
        """The file, fetched if it is not here: `fetch` writes it to the path it is given, whole and checked, or raises.

        ahead: what this process will read next, the soonest first, asked for when room is made: these are evicted last, the
        latest of them first. urgent: wait for room; if not, NoRoomError where there is none that leaves what is ahead and
        what must come before it in peace, or where the file is no longer ahead. release: called when room is short, lets go
        of a file that this process holds and does not need; False if there is none. closed: called when the file is let go
        of. DataError when no room can be had, or when another process that fetches the file makes no progress.
        """
        path, patience = self._files / entry.sha256, Patience(self._patience)
        while True:
            lock = self._open_lock(entry.sha256)
            if take(lock, fcntl.LOCK_SH):
                if self.has(entry):
                    os.utime(path)  # what was used last is evicted last
                    return Held(path, lock, closed)
                fcntl.flock(lock, fcntl.LOCK_UN)
            if take(lock, fcntl.LOCK_EX):
                try:
                    if not self.has(entry):
                        self._fetch(entry, fetch, ahead, urgent, release)
                        patience.restart()
                finally:
                    lock.close()
                continue  # another may have evicted it before it is ours to read: look again
            lock.close()
            patience.wait(pulse(self._part(entry.sha256)), lambda: self._stuck(entry))

    def _fetch(
        self,
        entry: Entry,
        fetch: Callable[[Path], None],
        ahead: Callable[[], Sequence[Entry]],
        urgent: bool,
        release: Callable[[], bool] | None,
    ) -> None:
        """Makes room, fetches and publishes; the entry's lock is ours."""
        part = self._part(entry.sha256)
        self._make_room(entry, ahead, urgent, release)
        try:
            fetch(part)
            os.rename(part, self._files / entry.sha256)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            part.unlink(missing_ok=True)

    def _make_room(
        self, entry: Entry, ahead: Callable[[], Sequence[Entry]], urgent: bool, release: Callable[[], bool] | None
    ) -> None:
        """Evicts until the file fits, and takes its space by a part file of its full length (sparse until written)."""
        limit, patience = self.config.limit, Patience(self._patience)
        self._part(entry.sha256).unlink(missing_ok=True)  # left by a process that crashed: the lock is ours now
        if entry.size > limit:
            raise DataError(
                f"data.cache.gigabytes={self.config.gigabytes:g}: {entry.name} alone has {entry.size / 1e9:.3g} GB; raise it"
            )
        while True:
            with alone(self._locks / "room", self._patience):
                used, soon = self._sizes(), list(ahead())
                needed = entry.size if urgent else entry.size + _unmet(soon, entry, used)
                taken, kept = sum(used.values()), {later.sha256 for later in soon}
                for key in self._by_worth(used, soon):
                    if taken + needed <= limit:
                        break
                    if (urgent or key not in kept) and self._evict(key):
                        taken -= used[key]
                if taken + needed <= limit:
                    with self._part(entry.sha256).open("wb") as file:
                        file.truncate(entry.size)
                    return
            if release is not None and release():
                continue
            if not urgent:
                raise NoRoomError(entry.name)
            patience.wait(None, lambda taken=taken: self._full(entry, taken))  # type: ignore[misc]

    def _by_worth(self, used: Iterable[str], soon: Sequence[Entry]) -> list[str]:
        """Files, the least worth keeping first: what was used longest ago, then what is soon to be, the latest first: a
        longer wait beats fetching twice."""
        turns = {entry.sha256: turn for turn, entry in enumerate(soon)}
        return sorted(used, key=lambda key: (1, -turns[key]) if key in turns else (0, _used_at(self._files / key)))

    def _sizes(self) -> dict[str, int]:
        """Bytes of every whole file, and of every one under way, by its name in `files`; what nobody fetches is removed."""
        found: dict[str, int] = {}
        # Twice: a file that is published while the directory is read may be missed under both its names.
        names = {*os.listdir(self._files), *os.listdir(self._files)}
        for path in (self._files / name for name in names):
            part = path.suffix == ".part"
            try:
                if part and self._unlocked(path.stem, path.unlink):
                    continue
                found[path.name] = path.stat().st_size
            except FileNotFoundError:  # published or removed since it was listed
                if part and (self._files / path.stem).exists():
                    found[path.stem] = (self._files / path.stem).stat().st_size
        return found

    def _evict(self, key: str) -> bool:
        """Removes a file that nobody reads; whether it is gone."""
        path = self._files / key
        return path.suffix != ".part" and self._unlocked(key, lambda: path.unlink(missing_ok=True))

    def _unlocked(self, key: str, action: Callable[[], None]) -> bool:
        """Acts under a file's lock if nobody holds it; whether it did."""
        with self._open_lock(key) as lock:
            if not take(lock, fcntl.LOCK_EX):
                return False
            action()
        return True

    def _part(self, key: str) -> Path:
        return self._files / f"{key}.part"

    def _open_lock(self, key: str) -> IO[bytes]:
        try:
            return (self._locks / key).open("ab")  # locks stay: removing one would let two processes hold it
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.root}: cannot keep shards there ({error.strerror or error}); free space, lower data.cache.gigabytes, or "
            "name another data.cache.directory"
        )

    def _stuck(self, entry: Entry) -> DataError:
        return DataError(
            f"{entry.name}: another process of this machine fetches it and has made no progress for {self._patience:.0f} s; "
            f"end that process (it holds {self._locks / entry.sha256}), or name another data.cache.directory"
        )

    def _full(self, entry: Entry, taken: int) -> DataError:
        return DataError(
            f"data.cache.gigabytes={self.config.gigabytes:g}: no room for {entry.name} ({entry.size / 1e9:.3g} GB): "
            f"{taken / 1e9:.3g} GB are in use at once by processes of this machine; raise it, or use fewer shards at once"
        )


def _unmet(soon: Sequence[Entry], entry: Entry, used: Collection[str]) -> int:
    """Bytes that are to come before `entry` and are neither here nor under way; NoRoomError if it is not to come soon."""
    if entry not in soon:
        raise NoRoomError(entry.name)
    before = soon[: soon.index(entry)]
    return sum(other.size for other in before if other.sha256 not in used and f"{other.sha256}.part" not in used)


def _used_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
