"""Shards: tar files of token blocks that webdataset reads, with an index and a table of metadata beside each.

One webdataset sample is one block of whole documents:

    train-00003-00000042.tokens.npy   uint16 or uint32 [tokens], every document ends with `eod`
    train-00003-00000042.ends.npy     int64 [documents], where each document ends (exclusive) within tokens

Part 3 of a build writes its blocks into train-00003-0000.tar, train-00003-0001.tar, … and beside each

    train-00003-0000.idx.json       where the blocks are in the tar
    train-00003-0000.meta.parquet   a row a document, in order: source, path, row, bytes, tokens, and its columns

One document a member would double the size of a tar of short documents (512-byte headers and padding) and read 50
times slower; blocks cost 2 %. Metadata as columns, compressed, costs a few bytes a document, and is only read by who
asks for it. A tar member is stored contiguously, so with the offset of its payload a block is a view of the mapped file
and opening a corpus reads no tar at all.

Written with tarfile and not webdataset's writer: that imports torch, and we need the offsets.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from data.config import DataError
from data.manifest import Shard, Split, Totals
from data.metadata import MetadataWriter, Schema, read_columns

__all__ = ["Blocks", "ShardWriter", "read_columns", "verify_split"]

OPEN_SHARDS = 256
"""Memory-mapped shards kept open by one reader; the least recently used is closed first."""

_COLUMNS = ("tokens", "tokens_offset", "documents", "ends_offset", "bytes")


class ShardWriter:
    """Packs the documents of one split and part into blocks and blocks into shards, in the order they come.

    columns: name and type of the columns that documents have beside source, path, row, bytes and tokens.
    Blocks and shards are closed at the first document border at or past their size, so the same documents give the
    same bytes. Use as a context manager; `finish` returns the written split.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype,
        block_tokens: int,
        shard_tokens: int,
        *,
        part: int = 0,
        columns: Schema | None = None,
    ) -> None:
        self._directory, self._name, self._dtype = directory, f"{split}-{part:05d}", dtype
        self._block_tokens, self._shard_tokens = block_tokens, shard_tokens
        self._meta = MetadataWriter(columns or {})
        self._documents: list[np.ndarray] = []
        self._pending = self._pending_bytes = 0
        self._blocks = 0
        self._shards: list[Shard] = []
        self._file: HashedFile | None = None
        self._tar: tarfile.TarFile | None = None
        self._index: dict[str, list[int]] = {}

    def add(self, tokens: np.ndarray, meta: Mapping[str, Any]) -> None:
        """Appends one document: tokens [n] that end with `eod`, and a row of metadata with source, path, row, bytes."""
        self._documents.append(tokens if tokens.dtype == self._dtype else _narrow(tokens, self._dtype))
        self._meta.add(meta, len(tokens))
        self._pending += len(tokens)
        self._pending_bytes += meta["bytes"]
        if self._pending >= self._block_tokens:
            self._close_block()

    def finish(self) -> Split:
        """Writes what is pending and returns the split."""
        self._close_block()
        self._close_shard()
        return Split(tuple(self._shards))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _close_block(self) -> None:
        if not self._documents:
            return
        tar, file = self._open_shard()
        stem = f"{self._name}-{self._blocks:08d}"
        ends = np.cumsum([len(document) for document in self._documents], dtype=np.int64)
        row = {"tokens": int(ends[-1]), "documents": len(ends), "bytes": self._pending_bytes}
        row["tokens_offset"] = _add_array(tar, file, f"{stem}.tokens.npy", np.concatenate(self._documents))
        row["ends_offset"] = _add_array(tar, file, f"{stem}.ends.npy", ends)
        for column in _COLUMNS:
            self._index[column].append(row[column])
        self._documents, self._pending, self._pending_bytes = [], 0, 0
        self._blocks += 1
        if sum(self._index["tokens"]) >= self._shard_tokens:
            self._close_shard()

    def _open_shard(self) -> tuple[tarfile.TarFile, HashedFile]:
        if self._tar is None or self._file is None:
            self._file = HashedFile(self._directory / f"{self._name}-{len(self._shards):04d}.tar")
            # USTAR headers are one 512-byte record whatever they hold, so payload offsets are known before writing.
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]
            self._index = {column: [] for column in _COLUMNS}
        assert self._tar is not None
        return self._tar, self._file

    def _close_shard(self) -> None:
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.close()
        path, index = self._file.path, self._index
        text = json.dumps({"shard": path.name, "dtype": self._dtype.name, **index}, separators=(",", ":")) + "\n"
        indexed, (described, sources) = HashedFile(path.with_suffix(".idx.json")), self._meta.write(path)
        indexed.write(text.encode())
        indexed.close()
        self._shards.append(
            Shard(
                file=path.name,
                size=self._file.position,
                sha256=self._file.hash.hexdigest(),
                index_file=indexed.path.name,
                index_size=indexed.position,
                index_sha256=indexed.hash.hexdigest(),
                meta_file=described.path.name,
                meta_size=described.position,
                meta_sha256=described.hash.hexdigest(),
                blocks=len(index["tokens"]),
                sources={name: Totals(*totals) for name, totals in sources.items()},
            )
        )
        self._tar = self._file = None


class HashedFile(io.RawIOBase):
    """A file for writing that hashes what passes and reaches the disk before it is called closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.hash, self.position = path, hashlib.sha256(), 0
        self._file: IO[bytes] = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        self.position += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self.position

    def close(self) -> None:
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        super().close()


def _narrow(tokens: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The tokens in the dtype of the shards; DataError where one does not fit, which would become another token."""
    limit = int(np.iinfo(dtype).max)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) <= limit:
        raise DataError(
            f"tokens from {int(tokens.min())} to {int(tokens.max())} do not fit {dtype.name} (0 to {limit}): the "
            "tokenizer gives ids that its own vocabulary does not have; correct tokenizer.path"
        )
    return tokens.astype(dtype)


def _add_member(tar: tarfile.TarFile, file: HashedFile, name: str, payload: bytes) -> int:
    """Adds a member with no owner and no date; returns the offset of its payload in the file."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    offset = file.position + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(payload))
    return offset


def _add_array(tar: tarfile.TarFile, file: HashedFile, name: str, array: np.ndarray) -> int:
    """Adds an .npy member; returns the offset of the first element (past the .npy header) in the file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return _add_member(tar, file, name, buffer.getvalue()) + buffer.tell() - array.nbytes


class Blocks:
    """Random access to the blocks of one split, straight from the mapped tar files.

    tokens_per_block: int64 [blocks]. Opening checks that every shard and index is there with its recorded size.
    """

    def __init__(self, directory: Path, split: Split, dtype: str) -> None:
        self._directory, self._split, self._dtype = directory, split, np.dtype(dtype)
        indexes = [_read_index(directory, shard) for shard in split.shards]
        columns = {
            column: np.concatenate(
                [np.asarray(index[column], np.int64) for index in indexes] or [np.zeros(0, np.int64)]
            )
            for column in _COLUMNS
        }
        self.tokens_per_block = columns["tokens"]
        self._columns = columns
        self._shard_of = np.repeat(np.arange(len(indexes)), [shard.blocks for shard in split.shards])
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.tokens_per_block)

    def tokens(self, block: int) -> np.ndarray:
        """Tokens of a block, a read-only view [tokens] of the mapped file in the stored dtype."""
        offset, count = int(self._columns["tokens_offset"][block]), int(self.tokens_per_block[block])
        return self._bytes(block, offset, count * self._dtype.itemsize).view(self._dtype)

    def ends(self, block: int) -> np.ndarray:
        """Where the documents of a block end (exclusive) in its tokens, int64 [documents]."""
        offset, count = int(self._columns["ends_offset"][block]), int(self._columns["documents"][block])
        return self._bytes(block, offset, count * 8).view(np.int64)

    def columns(self, shard: int, names: tuple[str, ...] | list[str]) -> dict[str, np.ndarray]:
        """Metadata of the documents of a shard, in order, by name of the column [documents]; see `read_columns`."""
        return read_columns(self._directory, self._split.shards[shard], names)

    def _bytes(self, block: int, offset: int, size: int) -> np.ndarray:
        number = int(self._shard_of[block])
        mapped = self._maps.get(number)
        if mapped is None:
            mapped = np.memmap(self._directory / self._split.shards[number].file, np.uint8, "r").view(np.ndarray)
            self._maps[number] = mapped
            if len(self._maps) > OPEN_SHARDS:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(number)
        return mapped[offset : offset + size]


class MappedShard:
    """One shard as a line of tokens, straight from the mapped tar file, which may lie apart from its index.

    Opening checks that shard and index are there with their recorded size and checksum.
    """

    def __init__(self, directory: Path, shard: Shard, dtype: str, tar: Path) -> None:
        index = _read_index(directory, shard, tar)
        kind = np.dtype(dtype)
        if index["dtype"] != kind.name:
            raise DataError(
                f"{directory / shard.index_file}: its tokens are {index['dtype']}, the manifest's {kind.name}; copy the corpus "
                f"again, or delete {directory} and build it again"
            )
        self._bytes = np.memmap(tar, np.uint8, "r").view(np.ndarray)
        self._tokens = self._bytes[: len(self._bytes) // kind.itemsize * kind.itemsize].view(kind)
        counts = np.asarray(index["tokens"], np.int64)
        ends = np.cumsum(counts)
        # Payloads lie at multiples of 64 bytes, so token t of block b is item t + shift[b] of the whole file.
        self._shift: list[int] = (np.asarray(index["tokens_offset"]) // kind.itemsize - (ends - counts)).tolist()
        self._block_ends: list[int] = ends.tolist()
        self._ends_offset, self._documents = index["ends_offset"], index["documents"]

    def read(self, start: int, out: np.ndarray) -> int:
        """Tokens from `start` on into int64 `out`; how many there were, fewer than asked at the shard's end."""
        ends, shift, filled, wanted = self._block_ends, self._shift, 0, len(out)
        block = bisect_right(ends, start)
        while filled < wanted and block < len(ends):
            place = start + filled
            size = min(wanted - filled, ends[block] - place)
            out[filled : filled + size] = self._tokens[place + shift[block] : place + shift[block] + size]
            filled, block = filled + size, block + 1
        return filled

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        blocks = [
            self._bytes[offset : offset + 8 * count].view(np.int64)
            for offset, count in zip(self._ends_offset, self._documents, strict=True)
        ]
        return np.concatenate([np.diff(ends, prepend=0) for ends in blocks] or [np.zeros(0, np.int64)])


def _read_index(directory: Path, shard: Shard, tar: Path | None = None) -> dict[str, Any]:
    """The index of a shard, after checking the sizes of its files and the index's checksum. tar: where it is, if not in the
    directory; then its metadata need not be there yet."""
    cure = f"copy the corpus again, or delete {directory} and build it again"
    here = tar is None or tar.parent == directory
    files = [(tar or directory / shard.file, shard.size)] + [(directory / shard.meta_file, shard.meta_size)] * here
    for path, expected in files:
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise DataError(f"{error.filename}: this part of the corpus is missing; {cure}") from error
        if size != expected:
            raise DataError(f"{path}: {size} bytes, but the manifest says {expected}; {cure}")
    try:
        text = (directory / shard.index_file).read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: this part of the corpus is missing; {cure}") from error
    if hashlib.sha256(text).hexdigest() != shard.index_sha256:
        raise DataError(f"{directory / shard.index_file}: its checksum is not the manifest's; {cure}")
    return json.loads(text)


def verify_split(directory: Path, split: Split) -> None:
    """Reads every shard whole and compares checksums; DataError names the first that differs."""
    for shard in split.shards:
        _read_index(directory, shard)
        for name, expected in ((shard.file, shard.sha256), (shard.meta_file, shard.meta_sha256)):
            with (directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DataError(
                    f"{directory / name}: its checksum is not the manifest's, some of its bytes changed; "
                    f"copy the corpus again, or delete {directory} and build it again"
                )
