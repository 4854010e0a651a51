"""One file from a URL, whole and right or not at all: attempts with growing pauses, size and checksum on arrival."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from pathlib import Path
from typing import IO

from data.config import DataError, Unreachable
from data.order import key
from data.stream_config import CacheConfig
from data.transport import Answer, TransferError, answer

_DOUBLINGS = 6


class Stopped(Exception):
    """The transfer was given up because its result is wanted no more."""


def download(
    url: str,
    target: Path,
    config: CacheConfig,
    *,
    size: int | None = None,
    sha256: str | None = None,
    stop: threading.Event | None = None,
) -> tuple[int, str]:
    """Writes what the URL holds to `target`, which reaches the disk, and returns its size and SHA-256.

    size, sha256: what they must be; None: what comes is taken, where the server announced no other length. DataError when
    no attempt brought that: it names the URL, the attempts, and what was wrong with each. Stopped when `stop` was set.
    """
    stop = stop or threading.Event()
    reasons: Counter[str] = Counter()
    for attempt in range(config.attempts):
        try:
            return _attempt(url, target, config, size, sha256, stop)
        except TransferError as error:
            reasons[str(error)] += 1
            if error.final:
                raise DataError(_failed(url, config, reasons)) from error
            if attempt + 1 < config.attempts:
                _pause(stop, url, attempt, config, error.wait)
    raise Unreachable(_failed(url, config, reasons))


def pause_seconds(url: str, attempt: int, backoff: float, process: int) -> float:
    """Seconds to rest after a failed attempt, from 0: backoff doubled each time, times 0.5 to 1.5, differently for each process
    and file, so that those who failed together do not come back together."""
    share = key("backoff", url, attempt, process) / 2**64
    return backoff * 2 ** min(attempt, _DOUBLINGS) * (0.5 + share)


def _pause(stop: threading.Event, url: str, attempt: int, config: CacheConfig, asked: float) -> None:
    usual = pause_seconds(url, attempt, config.backoff_seconds, os.getpid())
    if stop.wait(max(usual, min(asked, config.longest_pause))):
        raise Stopped(url)


def _attempt(
    url: str, target: Path, config: CacheConfig, size: int | None, sha256: str | None, stop: threading.Event
) -> tuple[int, str]:
    with answer(url, config.timeout_seconds) as found, open(target, "wb", opener=_in_place) as file:
        if size is not None:
            _check_announced(found, size)
        file.truncate(size or 0)
        received, digest = _receive(found, file, size if size is not None else found.announced, stop, url)
        if size is not None and digest != sha256:
            raise TransferError(f"sent {size} bytes, but wrong ones (SHA-256 {digest[:12]}…, not {str(sha256)[:12]}…)")
        file.flush()
        os.fsync(file.fileno())
    return received, digest


def _in_place(path: str, _: int) -> int:
    """Opens for writing without emptying: a cache counts the space that a file reserved by its length, at every moment."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _check_announced(found: Answer, size: int) -> None:
    """Before anything is received: a page of HTML, or another length, is not the file."""
    if found.announced not in (-1, size):
        what = "an HTML page (a login or an error?)" if found.kind == "text/html" else "a file"
        raise TransferError(f"sends {what} of {found.announced} bytes, not {size}")


def _receive(found: Answer, file: IO[bytes], size: int, stop: threading.Event, url: str) -> tuple[int, str]:
    """Writes and hashes the pieces; size: how many bytes must come, -1 for as many as do."""
    hasher, received = hashlib.sha256(), 0
    for piece in found.pieces:
        if stop.is_set():
            raise Stopped(url)
        received += len(piece)
        if size >= 0 and received > size:
            raise TransferError(f"sent more than {size} bytes")
        hasher.update(piece)
        file.write(piece)
    if size >= 0 and received < size:
        raise TransferError(f"ended after {received} of {size} bytes")
    return received, hasher.hexdigest()


def _failed(url: str, config: CacheConfig, reasons: Counter[str]) -> str:
    count = sum(reasons.values())
    told = "; ".join(f"{reason} ({times} times)" if times > 1 else reason for reason, times in reasons.items())
    attempts = "1 attempt" if count == 1 else f"{count} attempts"
    return (
        f"{url}: not received after {attempts}: {told}; see that the server has the file that the manifest names and may be "
        f"read from here, or allow more (data.cache.attempts={config.attempts}, "
        f"data.cache.timeout_seconds={config.timeout_seconds:g})"
    )
