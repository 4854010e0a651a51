"""Compressed files as byte streams that notice when they were cut short."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any

_CHUNK = 1 << 20


def open_bytes(path: Path) -> IO[bytes]:
    """The file for reading, decompressed when its name ends in .gz or .zst. A damaged or truncated file raises OSError
    or EOFError while it is read."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        return io.BufferedReader(_ZstandardStream(path), _CHUNK)
    return path.open("rb")


class _ZstandardStream(io.RawIOBase):
    """Frames of a .zst file, one after another. zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, path: Path) -> None:
        import zstandard  # only needed for this format

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._error = zstandard.ZstdError
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            rest = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = rest or self._file.read(_CHUNK)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the zstandard stream ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
            try:
                self._ready = self._frame.decompress(data)
            except self._error as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
