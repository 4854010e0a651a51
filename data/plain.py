"""Tars of others, read in place: a shard of documents that an index beside it points to, tokenised when they are read.

`data.index` writes the indexes; the tars stay as they are, where they are. Token arrays are read straight from the
mapped tar; text is tokenised on the fly, and the tokens of the last CACHED_BYTES of documents are kept.

An index is int64 [4, documents], a row each: where the contents of a document begin in the tar, bytes; how many they are;
where the document ends on the shard's line of tokens, `eod` included; and its kind (`data.members`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.config import DataError
from data.manifest import Manifest, Shard
from data.members import ARRAYS, DTYPES, Options, text_of, tokens_of_text
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer
from data.urls import local_path, scheme

CACHED_BYTES = 64 << 20
"""Tokens of tokenised documents that one corpus keeps in memory, in bytes."""

PLAIN = "plain"
"""The entry of a manifest's `spec` that says that its shards are tars of others, and how documents are found in them."""

TARS = "tars"
"""The entry of a manifest's `spec` that says where they are: a URL, or a path relative to the manifest's directory."""

SEEN = "seen.json"
"""Sizes and dates of the tars when their checksums were last right; not part of a corpus."""


def is_plain(manifest: Manifest) -> bool:
    """Whether a corpus is an index over tars of others."""
    return PLAIN in manifest.spec


def tars_location(directory: Path, manifest: Manifest) -> str:
    """Where the tars of an indexed corpus are: a URL, or the path of a directory."""
    place = str(manifest.spec[TARS])
    return place if scheme(place) else os.path.normpath(directory / local_path(place))


class PlainReader:
    """Opens the shards of one corpus; they share a tokenizer and a cache. directory: that of manifest and indexes."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        self.options = Options(**manifest.spec[PLAIN]["options"])
        self._documents: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        found = Tokenizer.load(self.directory / TOKENIZER_DIRECTORY)
        if found.fingerprint != self.manifest.tokenizer_fingerprint:
            raise DataError(f"{self.directory}: its tokenizer is not the one it was indexed with; index the tars again")
        return found

    def shard(self, shard: Shard, tar: Path) -> PlainShard:
        """A shard, whose tar lies at a path. DataError when index or tar are not those of the manifest."""
        return PlainShard(self, shard, tar)

    def encoded(self, name: str, offset: int, kind: int, payload: bytes) -> np.ndarray:
        """Tokens of a document of text, `eod` at the end, from the cache if they are there. name: of its tar."""
        key = (name, offset)
        with self._lock:
            tokens = self._documents.get(key)
            if tokens is not None:
                self._documents.move_to_end(key)
                return tokens
        text = text_of(kind, payload, self.options, f"{name}, byte {offset}")
        tokens = tokens_of_text(text or "", self.tokenizer)
        with self._lock:
            if key not in self._documents:
                self._documents[key] = tokens
                self._bytes += tokens.nbytes
            while self._bytes > CACHED_BYTES and len(self._documents) > 1:
                self._bytes -= self._documents.popitem(last=False)[1].nbytes
        return tokens


class PlainShard:
    """One tar of others as a line of tokens (a `data.corpus.ShardLine`)."""

    def __init__(self, reader: PlainReader, shard: Shard, tar: Path) -> None:
        self._reader, self._shard, self._tar = reader, shard, tar
        check_tar(reader.directory, shard, tar)
        index = _open_index(reader.directory, shard)
        self._offsets, self._sizes, self._ends, self._kinds = index
        self._bytes = np.memmap(tar, np.uint8, "r").view(np.ndarray)
        self._views: dict[int, np.ndarray] = {}
        self._eod = reader.manifest.eod

    def lengths(self) -> np.ndarray:
        """Tokens of each document, `eod` included, int64 [documents]."""
        return np.diff(self._ends, prepend=0)

    def read(self, start: int, out: np.ndarray) -> int:
        """Tokens from `start` on into int64 `out`; how many there were, fewer than asked at the shard's end."""
        wanted, ends = len(out), self._ends
        first = int(ends.searchsorted(start, "right"))
        last = int(ends.searchsorted(start + wanted, "left")) + 1
        stops = ends[first:last].tolist()
        if not stops:
            return 0
        at, filled = (int(ends[first - 1]) if first else 0), 0
        rows = zip(
            self._offsets[first:last].tolist(),
            self._sizes[first:last].tolist(),
            stops,
            self._kinds[first:last],
            strict=True,
        )
        for offset, size, stop, kind in rows:
            skip = start + filled - at
            take = min(stop - at - skip, wanted - filled)
            self._copy(offset, size, int(kind), stop - at, skip, out[filled : filled + take])
            filled, at = filled + take, stop
        return filled

    def read_document(self, number: int) -> np.ndarray:
        """Tokens of a document, int64 [tokens], `eod` at the end."""
        start = int(self._ends[number - 1]) if number else 0
        out = np.empty(int(self._ends[number]) - start, np.int64)
        self.read(start, out)
        return out

    def _copy(self, offset: int, size: int, kind: int, count: int, skip: int, out: np.ndarray) -> None:
        """Tokens of a document of `count`, from `skip` on."""
        if kind < ARRAYS:
            tokens = self._reader.encoded(self._shard.file, offset, kind, self._bytes[offset : offset + size].tobytes())
            if len(tokens) != count:
                raise DataError(
                    f"{self._tar}, byte {offset}: {len(tokens)} tokens, but {count} when it was indexed; the tar was changed, "
                    "or the package that tokenises was: index it again"
                )
            out[:] = tokens[skip : skip + len(out)]
            return
        tokens, first = self._tokens(kind, offset, size)
        stored = count - skip if count * tokens.itemsize <= size else count - 1 - skip  # of what is wanted, in the tar
        if stored >= len(out):
            out[:] = tokens[first + skip : first + skip + len(out)]
        else:  # the member has no `eod`
            out[:-1] = tokens[first + skip : first + skip + len(out) - 1]
            out[-1] = self._eod

    def _tokens(self, kind: int, offset: int, size: int) -> tuple[np.ndarray, int]:
        """An array of tokens, and where in it the document begins."""
        dtype = DTYPES[kind - ARRAYS]
        if offset % dtype.itemsize:  # written by something else than numpy, which aligns
            return self._bytes[offset : offset + size].view(dtype), 0
        whole = self._views.get(kind)
        if whole is None:
            usable = len(self._bytes) // dtype.itemsize * dtype.itemsize
            whole = self._views[kind] = self._bytes[:usable].view(dtype)
        return whole, offset // dtype.itemsize


def _open_index(directory: Path, shard: Shard) -> np.ndarray:
    """The index of a shard, int64 [4, documents], mapped."""
    path = directory / shard.index_file
    cure = "index the tars again (`triaxis data index`)"
    try:
        if path.stat().st_size != shard.index_size:
            raise DataError(f"{path}: {path.stat().st_size} bytes, but the manifest says {shard.index_size}; {cure}")
        index = np.load(path, mmap_mode="r").view(np.ndarray)
    except FileNotFoundError as error:
        raise DataError(f"{path}: this index is missing; {cure}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {cure}") from error
    if index.dtype != np.int64 or index.shape != (4, shard.documents):
        raise DataError(f"{path}: {index.dtype} {index.shape}, not int64 (4, {shard.documents}); {cure}")
    if shard.documents and int(index[2, -1]) != shard.tokens:
        raise DataError(f"{path}: {int(index[2, -1])} tokens, but the manifest says {shard.tokens}; {cure}")
    return index


def check_tar(directory: Path, shard: Shard, tar: Path) -> None:
    """That a tar is the one that was indexed: by its size; and by its checksum, once, if its date is another."""
    cure = "index it again (`triaxis data index`), or restore it"
    try:
        found = tar.stat()
    except FileNotFoundError as error:
        raise DataError(f"{tar}: this tar is missing; put it back, or index again those that are there") from error
    if found.st_size != shard.size:
        raise DataError(f"{tar}: {found.st_size} bytes, but {shard.size} when it was indexed; {cure}")
    seen = read_seen(directory)
    if tar.name == shard.sha256 or seen.get(shard.file) == found.st_mtime_ns:
        return  # from the cache, whose names are checksums, or unchanged
    with tar.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise DataError(f"{tar}: its contents changed since it was indexed (members reordered or replaced?); {cure}")
    write_seen(directory, {**seen, shard.file: found.st_mtime_ns})


def read_seen(directory: Path) -> dict[str, Any]:
    """Dates (ns) of the tars that are known to be right, by file."""
    try:
        return dict(json.loads((directory / SEEN).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def write_seen(directory: Path, seen: dict[str, Any]) -> None:
    """Keeps them; not where the directory cannot be written: then the next opening checks again."""
    own = directory / f".{SEEN}.{os.getpid()}"
    with contextlib.suppress(OSError):
        own.write_text(json.dumps(seen) + "\n", encoding="utf-8")
        os.replace(own, directory / SEEN)
