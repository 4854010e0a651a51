"""Bytes from a URL, in pieces, within time limits: http(s) by requests, object stores by fsspec.

A server may be silent for the time limit, no longer, and must on average send LEAST_RATE: one that lets a byte pass now
and then would otherwise hold training up for ever. Only what arrives is judged here, not whether it is right.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from data.config import DataError
from data.urls import scheme

LEAST_RATE = 1024
"""Bytes a second, averaged over the time limit, below which a transfer counts as stalled."""

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
"""The package that fsspec needs for a kind of store, where that package is not Triaxis's own."""

_PIECE = 1 << 20
_READ_AHEAD = 8 << 20
_FINAL = frozenset({400, 401, 403, 404, 405, 406, 410, 414, 451})


class TransferError(Exception):
    """A transfer that came to nothing. final: trying again is of no use. wait: seconds the server asked for."""

    def __init__(self, reason: str, *, final: bool = False, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.final, self.wait = final, wait


@dataclass(frozen=True)
class Answer:
    """What a server sends: pieces of bytes; announced: how many bytes it says there are, -1 where it does not say;
    kind: what it says they are, such as text/html."""

    pieces: Iterator[bytes]
    announced: int = -1
    kind: str = ""


@contextmanager
def answer(url: str, timeout: float) -> Iterator[Answer]:
    """The answer to a request for a URL. TransferError, here or from its pieces, when there is none within the limits;
    DataError for a kind of URL that cannot be read here."""
    with _http(url, timeout) if scheme(url) in ("http", "https") else _object(url, timeout) as found:
        yield Answer(_paced(found.pieces, timeout), found.announced, found.kind)


def _paced(pieces: Iterator[bytes], timeout: float) -> Iterator[bytes]:
    """The pieces; TransferError when fewer bytes than LEAST_RATE allows came within the time limit."""
    began, received = time.monotonic(), 0
    for piece in pieces:
        yield piece
        received += len(piece)
        now = time.monotonic()
        if now - began >= timeout:
            if received < LEAST_RATE * timeout:
                raise TransferError(f"sent {received} bytes in {timeout:g} s and seems stalled")
            began, received = now, 0


@contextmanager
def _http(url: str, timeout: float) -> Iterator[Answer]:
    import requests  # slow to import, and only needed here
    import urllib3

    problems = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
    try:
        # Without identity a server may compress what it sends, and its length is then another.
        response = requests.get(url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"})
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema) as error:
        raise TransferError(f"not an address ({error})", final=True) from error
    except problems as error:
        raise TransferError(_told(error, timeout)) from error
    with response:
        status = response.status_code
        if status != 200:
            reason = f"HTTP status {status} {response.reason or ''}".rstrip()
            raise TransferError(reason, final=status in _FINAL, wait=_retry_after(response.headers.get("Retry-After")))

        def pieces() -> Iterator[bytes]:
            try:
                while piece := response.raw.read1(_PIECE, decode_content=False):
                    yield piece
            except problems as error:
                raise TransferError(_told(error, timeout)) from error

        length = response.headers.get("Content-Length", "")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        yield Answer(pieces(), int(length) if length.isdigit() else -1, kind)


def _told(error: BaseException, timeout: float) -> str:
    """A network error in words that fit one line."""
    name, text = type(error).__name__, str(error)
    if "timeout" in name.lower() or "timed out" in text:
        return f"silent for {timeout:g} s"
    if "refused" in text:
        return "connection refused"
    if "reset" in text or "RemoteDisconnected" in text or "aborted" in text.lower():
        return "connection closed by the server"
    if "NameResolution" in text or "Name or service" in text:
        return "host name not found"
    if name == "IncompleteRead" or "IncompleteRead" in text:
        return "sent less than it announced"
    return f"{name}: {text[:200]}"


def _retry_after(value: str | None) -> float:
    """Seconds a Retry-After header asks for, 0 for none or one that cannot be read."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


@contextmanager
def _object(url: str, timeout: float) -> Iterator[Answer]:
    """What fsspec reads. Stores have time limits of their own, or none, so another thread does the reading: when it is
    silent for too long it is left behind."""
    store, path = _store(url)
    arrived: queue.Queue[Any] = queue.Queue(maxsize=4)
    left = threading.Event()

    def put(item: Any) -> bool:
        while not left.is_set():
            try:
                arrived.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def read() -> None:
        try:
            size = store.size(path)
            with store.open(path, "rb", block_size=_READ_AHEAD) as file:
                going = put(-1 if size is None else int(size))
                while going and (piece := file.read(_PIECE)):
                    going = put(piece)
            put(b"")
        except Exception as error:  # every store has exceptions of its own
            put(error)

    def get() -> Any:
        try:
            item = arrived.get(timeout=timeout)
        except queue.Empty:
            raise TransferError(f"silent for {timeout:g} s") from None
        if isinstance(item, Exception):
            final = isinstance(item, FileNotFoundError | PermissionError | IsADirectoryError)
            raise TransferError(f"{type(item).__name__}: {str(item)[:200]}", final=final) from item
        return item

    threading.Thread(target=read, name="object store", daemon=True).start()
    try:
        yield Answer(iter(get, b""), get())
    finally:
        left.set()


def _store(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    import fsspec

    kind = scheme(url)
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(kind)
        cure = f"pip install {package}" if package else f"install what fsspec asks for ({error})"
        raise DataError(f"{url}: stores of the kind {kind}:// need one more package; {cure}") from error
    except ValueError as error:
        raise DataError(f"{url}: {error}; use a path, http(s)://, s3://, gs:// or another of fsspec's") from error
