"""Where the members of a tar are, by reading its headers alone: one pass over 512-byte records of a mapped file.

Understands what GNU tar, Python and webdataset write: ustar with prefixes, GNU long names, pax headers, sizes in octal or
base 256 (POSIX.1-2001 pax; GNU tar manual, "Basic Tar Format"). Several times as fast as tarfile, which makes an
object of every member, and stricter: checksums, the end of the archive, and names that come twice.
"""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass

import numpy as np

from data.config import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_FILES = frozenset(b"0\0" + b"7")
_OTHERS = frozenset(b"123456g")  # links, devices, directories, defaults of pax: nothing that holds a document
_CHECKED = 4096  # headers whose checksums are computed together


@dataclass(frozen=True)
class Members:
    """The plain files of a tar in order. names: as stored. offsets, sizes: of their contents, bytes, int64 [members].

    others: members that are no plain files."""

    names: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    others: int


def scan(data: mmap.mmap | bytes, where: str) -> Members:
    """The members of a mapped tar. where: how messages call it. DataError for a file that is no tar, is truncated or
    damaged, has something behind its end, or holds a name twice."""
    if len(data) < BLOCK:
        raise DataError(f"{where}: {len(data)} bytes are no tar; name .tar files alone")
    headers: list[int] = []
    try:
        names, offsets, sizes, others = _walk(data, where, headers)
    finally:
        _check_sums(data, where, headers)  # of a damaged header, not what follows from it, is told
    if len(set(names)) < len(names):
        again = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(
            f"{where}: member {again!r} comes twice, so a document would too; write the tar again without it, or leave it out"
        )
    return Members(names, np.array(offsets, np.int64), np.array(sizes, np.int64), others)


def _walk(data: mmap.mmap | bytes, where: str, headers: list[int]) -> tuple[list[str], list[int], list[int], int]:
    names: list[str] = []
    offsets: list[int] = []
    sizes: list[int] = []
    others, position, end, long_name, pax = 0, 0, len(data), "", dict[str, str]()
    while True:
        head = data[position : position + BLOCK]
        if len(head) < BLOCK:
            raise _truncated(where, position, "the end-of-archive record")
        if head == _ZEROS:
            _check_end(data, where, position)
            return names, offsets, sizes, others
        headers.append(position)
        kind, payload = head[156], position + BLOCK
        size = int(pax["size"]) if "size" in pax and kind in _FILES else _number(head[124:136], where, position)
        position = payload + -(-size // BLOCK) * BLOCK
        if position > end:
            raise _truncated(where, end, f"{size} bytes of {_name(head)!r}, which begin at byte {payload}")
        if kind in _FILES:
            names.append(long_name or pax.get("path") or _name(head))
            offsets.append(payload)
            sizes.append(size)
            long_name, pax = "", {}
        elif kind == 0x4C:  # L: the next member's name
            long_name = data[payload : payload + size].rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif kind == 0x78:  # x: the next member's attributes
            pax = _pax(data[payload : payload + size], where, payload)
        elif kind in _OTHERS:
            others += kind != 0x67
            long_name, pax = ("", {}) if kind != 0x67 else (long_name, pax)
        elif kind != 0x4B:  # K: the next member's link target
            raise DataError(
                f"{where}: byte {position}: a member of the type {chr(kind)!r}, which cannot be read in place; write the "
                "tar again with plain files"
            )


def _name(head: bytes) -> str:
    name = head[:100].partition(b"\0")[0]
    if head[257:263] == b"ustar\0" and head[345]:
        name = head[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes, where: str, position: int) -> int:
    """A size: octal digits, or where its first bit is set base 256."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError:
        raise DataError(_not_a_tar(where, position)) from None


def _pax(body: bytes, where: str, position: int) -> dict[str, str]:
    """Records `length key=value\\n` of an extended header."""
    found: dict[str, str] = {}
    at = 0
    while at < len(body) and body[at]:
        digits, _, _ = body[at : at + 20].partition(b" ")
        record = body[at + len(digits) + 1 : at + int(digits or b"0")] if digits.isdigit() else b""
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals:
            raise DataError(f"{where}: byte {position}: a pax header that cannot be read; write the tar again")
        found[key.decode()] = value.decode("utf-8", "surrogateescape")
        at += int(digits)
    return found


def _check_end(data: mmap.mmap | bytes, where: str, position: int) -> None:
    """Behind the first empty record there may be nothing but zeros."""
    for start in range(position, len(data), 1 << 20):
        part = data[start : start + (1 << 20)]
        if part.count(0) != len(part):
            place = start + next(i for i, byte in enumerate(part) if byte)
            raise DataError(
                f"{where}: the archive ends at byte {position}, but more follows at byte {place} (tars joined to one file?); "
                "its documents would be lost: unpack with `tar --ignore-zeros -x` and write the tar again"
            )


def _check_sums(data: mmap.mmap | bytes, where: str, headers: list[int]) -> None:
    """Compares the checksum of every header, some thousand at a time."""
    view = np.frombuffer(data, np.uint8)
    for begin in range(0, len(headers), _CHECKED):
        places = np.array(headers[begin : begin + _CHECKED])
        rows = view[places[:, None] + np.arange(BLOCK)]
        fields = rows[:, 148:156]
        sums = rows.sum(1, dtype=np.int64) - fields.sum(1, dtype=np.int64) + 8 * 32
        digits = (fields >= 48) & (fields < 56)
        stated = np.zeros(len(places), np.int64)
        for column in range(8):  # six octal digits, a NUL and a space, in practice
            stated = np.where(digits[:, column], stated * 8 + fields[:, column] - 48, stated)
        wrong = np.flatnonzero(sums != stated)
        if len(wrong):
            raise DataError(_not_a_tar(where, int(places[wrong[0]]), view[:2].tobytes()))


def _not_a_tar(where: str, position: int, magic: bytes = b"") -> str:
    if position:
        return f"{where}: the tar header at byte {position} is damaged; copy the file again, or take it out"
    if magic in (b"\x1f\x8b", b"BZ", b"\x28\xb5", b"\xfd7"):
        return f"{where}: compressed, and members can only be read in place from a plain tar; decompress it"
    return f"{where}: not a tar (its first 512 bytes are no header); correct the path, or take the file out"


def _truncated(where: str, size: int, missing: str) -> DataError:
    return DataError(f"{where}: truncated: it ends at byte {size} before {missing}; copy it again, or take it out")
