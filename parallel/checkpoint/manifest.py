"""The manifest: the one file that makes a directory a checkpoint. Rank 0 writes it last, from all ranks' indexes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xxhash

from parallel.checkpoint.durable import unseal
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError
from parallel.checkpoint.files import Index, data_name, index_name, parse_index
from parallel.checkpoint.pieces import Box, overlapping, volume

MANIFEST = "manifest.json"

_FOREIGN = {
    ".metadata": "a torch distributed checkpoint",
    "config.json": "a Hugging Face model",
    "latest": "a DeepSpeed checkpoint",
    "latest_checkpointed_iteration.txt": "a Megatron checkpoint",
}


@dataclass(frozen=True)
class FileEntry:
    """A file of the checkpoint; `checksum` is xxh3_128 of all its bytes, as `xxh128sum` prints it."""

    name: str
    size: int
    checksum: str


@dataclass(frozen=True)
class TensorEntry:
    """A logical tensor: its whole shape, its dtype, and which ranks' files hold parts of it."""

    shape: tuple[int, ...]
    dtype: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Contents of `manifest.json`. `time` is seconds since 1970; `state` is what the caller gave to `save`."""

    step: int
    attempt: str
    sequence: int
    time: float
    world_size: int
    files: tuple[FileEntry, ...]
    tensors: dict[str, TensorEntry] = field(repr=False)
    state: dict[str, Any] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest itself."""
        return sum(file.size for file in self.files)

    def file(self, name: str) -> FileEntry:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, FileEntry]:
        return {file.name: file for file in self.files}

    def body(self) -> dict[str, Any]:
        """What is sealed into the file. Ranks are written as ranges, since thousands may hold a part of a tensor."""
        tensors = {
            name: {"shape": list(t.shape), "dtype": t.dtype, "ranks": pack_ranks(t.ranks)}
            for name, t in self.tensors.items()
        }
        files = [asdict(file) for file in self.files]
        plain = {key: getattr(self, key) for key in ("step", "attempt", "sequence", "time", "world_size")}
        return {**plain, "state": self.state, "files": files, "tensors": tensors}


def pack_ranks(ranks: Iterable[int]) -> str:
    """`(0, 1, 2, 5)` → `"0-2,5"`."""
    spans: list[list[int]] = []
    for rank in sorted(ranks):
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def unpack_ranks(text: str) -> tuple[int, ...]:
    """The inverse of `pack_ranks`."""
    ranks: list[int] = []
    for span in filter(None, text.split(",")):
        first, _, last = span.partition("-")
        ranks.extend(range(int(first), int(last or first) + 1))
    return tuple(ranks)


def tensor_table(indexes: list[Index]) -> dict[str, TensorEntry]:
    """The table of logical tensors that the ranks' pieces make up.

    Raises CheckpointError unless every tensor is covered exactly once, with one shape and one dtype: a part that no
    rank wrote would be lost, one that two wrote would be ambiguous.
    """
    about: dict[str, tuple[tuple[int, ...], str]] = {}
    boxes: dict[str, list[Box]] = {}
    ranks: dict[str, list[int]] = {}
    for index in indexes:
        for piece in index.pieces:
            here = (piece.shape, piece.dtype)
            if about.setdefault(piece.name, here) != here:
                raise CheckpointError(f"{piece.name}: rank {index.rank} has {here}, others {about[piece.name]}")
            boxes.setdefault(piece.name, []).append(piece.box)
            holders = ranks.setdefault(piece.name, [])
            if not holders or holders[-1] != index.rank:
                holders.append(index.rank)
    for name, parts in boxes.items():
        if clash := overlapping(parts):
            raise CheckpointError(f"{name}: rectangles {clash[0]} and {clash[1]} overlap; each element is saved once")
        held, whole = sum(volume(extent) for _, extent in parts), volume(about[name][0])
        if held != whole:
            raise CheckpointError(f"{name}: the ranks hold {held} of its {whole} elements; one did not pass its piece")
    return {name: TensorEntry(*about[name], tuple(ranks[name])) for name in sorted(about)}


def read_manifest(path: Path) -> Manifest:
    """Read a checkpoint directory's manifest.

    Raises CheckpointCorrupt (none there, or altered) or ForeignVersion.
    """
    file = path / MANIFEST
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CheckpointCorrupt(_no_manifest(path, error)) from error
    body = unseal(raw, file)
    named = re.match(r"step_(\d+)", path.name)
    if named and int(named[1]) != body["step"]:
        raise CheckpointCorrupt(f"{file}: belongs to step {body['step']}; use another checkpoint or restore the file")
    tensors = {
        name: TensorEntry(tuple(t["shape"]), t["dtype"], unpack_ranks(t["ranks"]))
        for name, t in body["tensors"].items()
    }
    plain = {key: body[key] for key in ("step", "attempt", "sequence", "time", "world_size", "state")}
    return Manifest(**plain, files=tuple(FileEntry(**f) for f in body["files"]), tensors=tensors)


def _no_manifest(path: Path, error: OSError) -> str:
    if not path.is_dir():
        return f"{path}: no such checkpoint directory; `triaxis checkpoint list` shows those there are"
    if (path / MANIFEST).exists():
        return f"{path / MANIFEST}: unreadable ({error.strerror})"
    looks = next((f"; it looks like {what}" for name, what in _FOREIGN.items() if (path / name).exists()), "")
    return f"{path}: not a Triaxis checkpoint, or its manifest was deleted: no {MANIFEST}{looks}"


def check_whole(path: Path) -> Manifest:
    """The manifest of a whole checkpoint: every file there with its right size. Reads no data.

    Raises CheckpointCorrupt naming the first few files that are missing or of another size.
    """
    manifest = read_manifest(path)
    problems = list(filter(None, (size_problem(path, file) for file in manifest.files)))
    if problems:
        raise CheckpointCorrupt(f"{path}: {'; '.join(problems[:3])}; use another checkpoint or restore the files")
    return manifest


def size_problem(path: Path, entry: FileEntry) -> str:
    """What is wrong with a file's presence and size, empty where nothing is."""
    try:
        size = os.stat(path / entry.name).st_size
    except OSError as error:
        return f"{entry.name} is missing" if isinstance(error, FileNotFoundError) else f"{entry.name}: {error.strerror}"
    return "" if size == entry.size else f"{entry.name} has {size} bytes, not {entry.size}"


def read_index(path: Path, manifest: Manifest, rank: int) -> Index:
    """A rank's index, checked against the manifest. Raises CheckpointCorrupt."""
    file = path / index_name(rank)
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CheckpointCorrupt(f"{file}: unreadable ({error.strerror}); use another checkpoint") from error
    if xxhash.xxh3_128_hexdigest(raw) != manifest.file(file.name).checksum:
        raise CheckpointCorrupt(f"{file}: its checksum is not the manifest's; use another checkpoint")
    index = parse_index(raw, file)
    assert index.checksum == manifest.file(data_name(rank)).checksum
    return index
