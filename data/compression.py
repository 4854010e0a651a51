"""Compressed files as byte streams that notice when they were cut short, and give what is before the cut."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
"""Endings of compressed files; the rest of the name tells what is in them."""

DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a damaged or truncated file raises."""

_CHUNK = 1 << 16
_BUFFER = 1 << 18


def open_bytes(path: Path) -> io.BufferedReader:
    """The file for reading, decompressed when its name ends in .gz, .tgz, .zst, .bz2 or .xz. A damaged or truncated file
    raises one of DAMAGE where it is damaged."""
    suffix = path.suffix.lower()
    new_frame = {
        ".gz": lambda: zlib.decompressobj(31),
        ".tgz": lambda: zlib.decompressobj(31),
        ".bz2": bz2.BZ2Decompressor,
        ".xz": lzma.LZMADecompressor,
        ".zst": _zstandard,
    }.get(suffix)
    return path.open("rb") if new_frame is None else io.BufferedReader(_Frames(path, new_frame), _BUFFER)


def _zstandard() -> Any:
    import zstandard  # only needed for this format

    return zstandard.ZstdDecompressor().decompressobj()


class _Frames(io.RawIOBase):
    """A compressed file frame by frame: gzip members, bzip2 and xz streams, zstandard frames, one after another.

    The standard library's and zstandard's own readers either take a truncated file for a whole one or lose what they
    had decompressed when they find it out.
    """

    def __init__(self, path: Path, new_frame: Callable[[], Any]) -> None:
        self._new_frame = new_frame
        self._file: IO[bytes] = path.open("rb")
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            rest = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = rest or self._file.read(_CHUNK)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the compressed stream ends in the middle")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new_frame()
                if rest and not rest.strip(b"\0"):  # tapes and block devices pad with zeros
                    self._frame = None
                    continue
            self._ready = memoryview(self._decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._frame.decompress(data)
        except DAMAGE:
            raise
        except Exception as error:  # zstandard.ZstdError, a plain Exception
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._file.close()
        super().close()
