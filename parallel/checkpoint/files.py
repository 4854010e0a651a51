"""One rank's file: a safetensors file of its pieces, and beside it an index with checksums.

The data file is plain safetensors, key `name@offset`, so any tool opens it. It is written by hand rather than by the
safetensors package because the bytes then go from the staging buffer to the disk and through the checksum in one pass,
with no second copy in memory. Dtypes that the format has no name for are declared as U8 with one more dim; the index
knows the true dtype. Pieces are ordered by falling item size and data begins at a multiple of 64, so all are aligned.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import xxhash

from parallel.checkpoint.durable import fsync_directory, seal, unseal, write_durable
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError
from parallel.checkpoint.pieces import Box, Piece, box_of, check_piece, volume

CHUNK = 8 << 20
"""Bytes written and hashed at a time: they are still in a cache when they are hashed."""

BLOCK = 32 << 20
"""Bytes of a piece in a file; larger ones are cut by rows, since a reader checks whole pieces of which it needs a part."""

_ALIGNMENT = 64
_SAFETENSORS = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def data_name(rank: int) -> str:
    """File of a rank's tensors."""
    return f"rank_{rank:05d}.safetensors"


def index_name(rank: int) -> str:
    """File that says what a rank's tensors are."""
    return f"rank_{rank:05d}.json"


def failed_name(rank: int) -> str:
    """Where a rank that could not write says why, so that rank 0 need not wait for the time-out."""
    return f"rank_{rank:05d}.failed"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as text, without `torch.`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """The dtype of such a text; ValueError for others."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"dtype {name} is not known to torch {torch.__version__}; load it with a newer torch")
    return dtype


@dataclass(frozen=True)
class SavedPiece:
    """A piece as it lies in a rank's file: bytes [begin, end) after the header."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    extent: tuple[int, ...]
    dtype: str
    begin: int
    end: int
    checksum: str = ""

    @property
    def key(self) -> str:
        return f"{self.name}@{','.join(map(str, self.offset))}"

    @property
    def box(self) -> Box:
        return self.offset, self.extent


@dataclass(frozen=True)
class Index:
    """What a rank wrote for one save. `sequence` counts the saves of an attempt, so a retry is never confused."""

    rank: int
    world_size: int
    step: int
    attempt: str
    sequence: int
    size: int
    checksum: str
    header_size: int
    header_checksum: str
    pieces: tuple[SavedPiece, ...]


def plan_file(pieces: list[Piece]) -> tuple[list[SavedPiece], list[int]]:
    """Lay the pieces out in a file; returns what lies there and which of `pieces` each is.

    Empty rectangles of non-empty tensors are left out.
    Raises ValueError for a piece outside its tensor or a rectangle given twice.
    """
    saved: list[SavedPiece] = []
    order: list[int] = []
    keys: set[str] = set()
    begin = 0
    for i in sorted(range(len(pieces)), key=lambda i: -pieces[i].tensor.dtype.itemsize):
        piece = pieces[i]
        check_piece(piece)
        if volume(piece.shape) and not piece.tensor.numel():
            continue
        end = begin + piece.tensor.numel() * piece.tensor.dtype.itemsize
        dtype, (offset, extent) = dtype_name(piece.tensor.dtype), box_of(piece)
        entry = SavedPiece(piece.name, tuple(piece.shape), tuple(offset), extent, dtype, begin, end)
        if entry.key in keys:
            raise ValueError(f"piece {entry.key} is given twice")
        keys.add(entry.key)
        saved.append(entry)
        order.append(i)
        begin = end
    return saved, order


def header_bytes(pieces: list[SavedPiece]) -> bytes:
    """The safetensors header: its length, then JSON padded with spaces to the alignment."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for piece in pieces:
        about = {"name": piece.name, "shape": piece.shape, "offset": piece.offset, "dtype": piece.dtype}
        header["__metadata__"][piece.key] = json.dumps(about)
        known = piece.dtype in _SAFETENSORS
        shape = piece.extent if known else (*piece.extent, dtype_of(piece.dtype).itemsize)
        name = _SAFETENSORS.get(piece.dtype, "U8")
        header[piece.key] = {"dtype": name, "shape": shape, "data_offsets": [piece.begin, piece.end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class DataFile:
    """A data file being written: the planned pieces' bytes, in their order, hashed on their way."""

    def __init__(self, path: Path, pieces: list[SavedPiece]) -> None:
        header = header_bytes(pieces)
        self.header_size, self.header_checksum = len(header), xxhash.xxh3_128_hexdigest(header)
        self.pieces: list[SavedPiece] = []  # those that are written, with checksums
        self._left = iter(pieces)
        self._whole = xxhash.xxh3_128(header)
        self._file = open(path, "wb")  # noqa: SIM115 (closed below)
        self._file.write(header)

    def append(self, data: memoryview) -> None:
        """Write the next piece."""
        piece, part = next(self._left), xxhash.xxh3_128()
        assert len(data) == piece.end - piece.begin, (piece.key, len(data))
        for at in range(0, len(data), CHUNK):
            chunk = data[at : at + CHUNK]
            self._file.write(chunk)
            self._whole.update(chunk)
            part.update(chunk)
        self.pieces.append(SavedPiece(**{**vars(piece), "checksum": part.hexdigest()}))

    def finish(self) -> str:
        """Make the file durable; returns its checksum."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._whole.hexdigest()

    def close(self) -> None:
        """Let the file go, whole or not."""
        self._file.close()


def write_data(path: Path, pieces: list[SavedPiece], data: memoryview) -> tuple[list[SavedPiece], str, int, str]:
    """Write and fsync a data file; returns the pieces with checksums, the file's checksum, and the header's."""
    with contextlib.closing(DataFile(path, pieces)) as file:
        for piece in pieces:
            file.append(data[piece.begin : piece.end])
        return file.pieces, file.finish(), file.header_size, file.header_checksum


def write_rank(
    directory: Path, rank: int, world_size: int, step: int, attempt: str, sequence: int,
    pieces: list[SavedPiece], data: memoryview,
) -> Index:  # fmt: skip
    """Write a rank's data file, then its index: an index that is there vouches for the data beside it."""
    summed, checksum, header_size, header_checksum = write_data(directory / data_name(rank), pieces, data)
    size = header_size + (pieces[-1].end if pieces else 0)
    index = Index(
        rank, world_size, step, attempt, sequence, size, checksum, header_size, header_checksum, tuple(summed)
    )
    write_index(directory, index)
    return index


def write_index(directory: Path, index: Index) -> None:
    """Write a rank's index, once its data file is durable."""
    fsync_directory(directory)
    write_durable(directory / index_name(index.rank), seal(asdict(index)))


def parse_index(raw: bytes, path: Path) -> Index:
    """Raises CheckpointCorrupt where the bytes were altered."""
    body = unseal(raw, path)
    pieces = tuple(
        SavedPiece(p["name"], tuple(p["shape"]), tuple(p["offset"]), tuple(p["extent"]), p["dtype"], p["begin"],
                   p["end"], p["checksum"])
        for p in body["pieces"]
    )  # fmt: skip
    fields = {key: body[key] for key in Index.__dataclass_fields__ if key != "pieces"}
    return Index(**fields, pieces=pieces)


def checksum_range(file: FileIO, begin: int, end: int) -> str:
    """xxh3_128 of a file's bytes [begin, end), read in chunks.

    Reads rather than maps, so that a failing disk raises an OSError and does not kill the process with a signal.
    Raises CheckpointCorrupt where the file ends before `end`.
    """
    digest = xxhash.xxh3_128()
    buffer = memoryview(bytearray(min(CHUNK, end - begin)))
    file.seek(begin)
    while begin < end:
        count = file.readinto(buffer[: end - begin]) or 0
        if count == 0:
            raise CheckpointCorrupt(f"{file.name}: ends {end - begin} bytes early; use another checkpoint")
        digest.update(buffer[:count])
        begin += count
    return digest.hexdigest()
