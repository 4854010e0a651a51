"""Documents inside the tars of others: which members are documents, of what kind, and what their tokens are.

As in webdataset, members that share their name up to the first dot of its last part are one sample, and lie side by side.
A sample is one document (one a line for .jsonl), from the first of these that it has; its other members are left alone:

    .npy         token ids, one dimension of integers; read in place
    .txt .txt.gz text
    .jsonl       a JSON object with text on every line
    .json        a JSON object with text
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np

from data.config import DataError
from data.tar import Members
from data.tokenizers import Tokenizer

TEXT, GZIP, JSON, LINE = range(4)
ARRAYS = 8
"""Kinds of documents: of text, and from ARRAYS on those of token arrays by dtype."""

DTYPES = tuple(np.dtype(name) for name in ("u1", "<u2", "<u4", "<i4", "<i8", "<u8", "<i2"))

_SUFFIXES = ("npy", "txt", "txt.gz", "jsonl", "json")
_TEXT_KINDS = {"txt": TEXT, "txt.gz": GZIP, "json": JSON, "jsonl": LINE}
_HEADER = re.compile(rb"\{'descr': '([^']{2,4})', 'fortran_order': (?:True|False), 'shape': \((\d+),\), \} *\n")


@dataclass(frozen=True)
class Options:
    """What decides the documents of a tar. text_field: key of JSON that holds text. member: the suffix of the members that
    are documents, empty for the first of the list above."""

    text_field: str = "text"
    member: str = ""


class Place(NamedTuple):  # a frozen dataclass takes four times as long to make, and there are millions
    """A document in a tar. member: its name. row: line of a .jsonl, from 0. kind: see above. offset, size: bytes. about: offset
    and size of the JSON that tells of it: itself, or a .json member of its sample; (0, 0) without one."""

    member: str
    row: int
    kind: int
    offset: int
    size: int
    about: tuple[int, int] = (0, 0)


def places(members: Members, data: Any, options: Options, where: str, skipped: Counter[str]) -> Iterator[Place]:
    """Where the documents of a tar are, in order. DataError for samples that are torn apart, and arrays that are no tokens."""
    for name, suffix, number, json_number in _chosen(members, options, where, skipped):
        offset, size = int(members.offsets[number]), int(members.sizes[number])
        about = (int(members.offsets[json_number]), int(members.sizes[json_number])) if json_number >= 0 else (0, 0)
        if suffix == "npy":
            kind, begin, length = _array(data, offset, size, where, name)
            yield Place(name, 0, kind, begin, length, about)
        elif suffix == "jsonl":
            yield from _lines(name, data, offset, size)
        else:
            yield Place(name, 0, _TEXT_KINDS[suffix], offset, size, about)


def _chosen(
    members: Members, options: Options, where: str, skipped: Counter[str]
) -> Iterator[tuple[str, str, int, int]]:
    """(name, format, number) of the member of each sample that is its document, and number of its .json member or -1."""
    seen: set[str] = set()
    key, found, about = "", dict[str, tuple[str, int]](), -1

    def choose() -> Iterator[tuple[str, str, int, int]]:
        for format_ in _SUFFIXES:
            if format_ in found:
                yield found[format_][0], format_, found[format_][1], about
                return
        skipped["no document"] += bool(key)

    for number, name in enumerate(members.names):
        folder, slash, base = name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not stem or not dot:
            skipped["no sample"] += 1
            continue
        stem = folder + slash + stem
        if stem != key:
            yield from choose()
            key, found, about = stem, {}, -1
            if key in seen:
                raise DataError(
                    f"{where}: members of the sample {key!r} lie apart (reordered, or two tars joined); write the tar again "
                    "with the members of a sample side by side"
                )
            seen.add(key)
        if suffix == "ends.npy":
            raise DataError(
                f"{where}: a shard of a built corpus; name its directory as data.path instead of indexing it"
            )
        about = number if suffix == "json" else about
        format_ = _format(suffix, options.member)
        if format_ in found:
            raise DataError(
                f"{where}: the sample {key!r} has several members that could be its document ({found[format_][0]}, {name}); "
                f"choose by --member, for example --member {suffix}"
            )
        if format_:
            found[format_] = (name, number)
    yield from choose()
    skipped["no plain file"] += members.others


@lru_cache(maxsize=1 << 10)
def _format(suffix: str, wanted: str) -> str:
    """The format that a suffix says (`npy` for `tokens.npy`), empty for none or one that is not wanted."""
    if wanted and suffix != wanted:
        return ""
    return next(
        (one for one in ("txt.gz", "npy", "txt", "jsonl", "json") if suffix == one or suffix.endswith("." + one)), ""
    )


def _lines(name: str, data: Any, offset: int, size: int) -> Iterator[Place]:
    at, end, row = offset, offset + size, 0
    while at < end:
        stop = data.find(b"\n", at, end)
        stop = end if stop < 0 else stop
        if data[at:stop].strip():
            yield Place(name, row, LINE, at, stop - at, (at, stop - at))
        at, row = stop + 1, row + 1


_BY_NAME = {
    name: (ARRAYS + number, dtype.itemsize) for number, dtype in enumerate(DTYPES) for name in (dtype.str.encode(),)
}


def _array(data: Any, offset: int, size: int, where: str, name: str) -> tuple[int, int, int]:
    """(kind, offset, bytes) of the tokens of a .npy member."""
    head = data[offset : offset + 128]
    match = _HEADER.fullmatch(head, 10) if head[:8] == b"\x93NUMPY\1\0" and head[8:10] == b"v\0" else None
    if match and match[1] in _BY_NAME:  # as numpy writes short headers
        kind, width = _BY_NAME[match[1]]
        length = int(match[2]) * width
        if length + 128 == size:
            return kind, offset + 128, length
    where = f"{where}, member {name!r}"
    if match:
        descr, count, begin = match[1].decode(), int(match[2]), 128
    else:  # other versions and lengths of the header
        try:
            file = BytesIO(data[offset : offset + min(size, 1 << 14)])
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise DataError(f"{where}: not an array of numpy ({error}); take it out, or write the tar again") from error
        if len(shape) != 1:
            raise DataError(
                f"{where}: an array of shape {shape}, but tokens have one dimension; choose others by --member"
            )
        descr, count, begin = dtype.str, shape[0], file.tell()
    dtype = np.dtype(descr)
    if dtype not in DTYPES:
        raise DataError(
            f"{where}: an array of {dtype}, but tokens are integers (uint16, int32, …); choose others by --member"
        )
    if begin + count * dtype.itemsize != size:
        raise DataError(f"{where}: its header says {count} tokens of {dtype}, but it has {size - begin} bytes of them")
    return ARRAYS + DTYPES.index(dtype), offset + begin, count * dtype.itemsize


def text_of(kind: int, payload: bytes, options: Options, where: str) -> str | None:
    """The text of a document; None where it is no UTF-8. DataError for JSON that has none."""
    try:
        if kind == GZIP:
            payload = gzip.decompress(payload)
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        return None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{where}: its gzip data is damaged ({error}); take it out, or write the tar again") from error
    if kind in (TEXT, GZIP):
        return text
    try:
        value: Any = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); repair it or take it out") from error
    found = value.get(options.text_field) if isinstance(value, dict) else None
    if not isinstance(found, str):
        has = ", ".join(map(repr, value)) if isinstance(value, dict) else f"no object but {type(value).__name__}"
        raise DataError(f"{where}: no text under {options.text_field!r}; it has {has}; name the key by --text-field")
    return found


def tokens_of_text(text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of a text and `eod`, in the tokenizer's dtype."""
    return tokenizer.encode_documents([text])[0]
