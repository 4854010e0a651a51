"""Loading at any layout: each wanted rectangle is filled from whichever saved rectangles it meets.

Files are read in order of distance from the reader's own rank and only until all is filled, so a resume at the same
layout reads one file a rank, and a thousand ranks do not all begin with the first file. Data is mapped, so only the
bytes that are copied are read, and no piece is held twice.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError
from parallel.checkpoint.files import Index, SavedPiece, checksum_range, data_name, dtype_of
from parallel.checkpoint.manifest import Manifest, read_index, read_manifest, size_problem
from parallel.checkpoint.pieces import Piece, box_of, check_piece, intersect, volume, window
from parallel.checkpoint.verify import hold


@dataclass
class _Want:
    """A piece to fill and how many of its elements are still missing."""

    piece: Piece
    missing: int


def load(
    path: Path | str, pieces: list[Piece], *, strict: bool = True, verify: bool = True, rank: int = 0
) -> dict[str, Any]:
    """Fill the pieces' tensors in place from a checkpoint saved at any layout; returns its `state`.

    pieces: any rectangles, overlapping or not, on any device; the saved dtype is converted to the tensor's.
    strict: refuse names that the checkpoint lacks; otherwise their tensors are left as they are.
    verify: compare the checksum of every saved piece that is read. rank: this process's, to begin with its own file.
    Raises CheckpointError for missing names and other shapes, before anything is changed; CheckpointCorrupt where
    bytes are not as committed: tensors are then partly filled, so load another checkpoint into them or stop.
    """
    path = Path(path)
    with hold(path):
        manifest = read_manifest(path)
        wanted = _match(path, manifest, pieces, strict)
        for holder, names in _nearest_first(manifest, wanted, rank):
            left = {name: wanted[name] for name in names if _missing(wanted[name])}
            if left:
                _fill_from(path, manifest, holder, left, verify)
        unfilled = [name for name, wants in wanted.items() if _missing(wants)]
        if unfilled:
            raise CheckpointCorrupt(f"{path}: no file holds all of {_some(unfilled)}; use another checkpoint")
        return manifest.state


def read_state(path: Path | str) -> dict[str, Any]:
    """The state that was given to `save`, without reading any tensor."""
    return read_manifest(Path(path)).state


def _match(path: Path, manifest: Manifest, pieces: list[Piece], strict: bool) -> dict[str, list[_Want]]:
    """Pair the wanted pieces with the checkpoint's tensors; raises CheckpointError listing what does not fit."""
    wanted: dict[str, list[_Want]] = {}
    absent: list[str] = []
    differ: list[str] = []
    for piece in pieces:
        check_piece(piece)
        entry = manifest.tensors.get(piece.name)
        if entry is None:
            absent.append(piece.name)
        elif entry.shape != tuple(piece.shape):
            differ.append(f"{piece.name} is {list(entry.shape)} there and {list(piece.shape)} here")
        else:
            wanted.setdefault(piece.name, []).append(_Want(piece, piece.tensor.numel()))
    if differ:
        raise CheckpointError(
            f"{path}: other shapes: {_some(differ)}; the recipe's model is not the one that was saved"
        )
    if absent and strict:
        raise CheckpointError(
            f"{path}: lacks {len(absent)} tensors: {_some(absent)}; it was saved from another model or optimizer "
            "(load weights only, or with strict=False, to leave them as they are)"
        )
    return wanted


def _nearest_first(manifest: Manifest, wanted: dict[str, list[_Want]], rank: int) -> list[tuple[int, list[str]]]:
    """(rank, names of wanted tensors that its file holds parts of), own rank first, then upwards and around."""
    names: dict[int, list[str]] = {}
    for name in wanted:
        for holder in manifest.tensors[name].ranks:
            names.setdefault(holder, []).append(name)
    return sorted(names.items(), key=lambda item: (item[0] - rank) % manifest.world_size)


def _missing(wants: list[_Want]) -> bool:
    return any(want.missing for want in wants)


def _some(texts: list[str]) -> str:
    unique = list(dict.fromkeys(texts))
    return ", ".join(unique[:5]) + (f" and {len(unique) - 5} more" if len(unique) > 5 else "")


def _fill_from(path: Path, manifest: Manifest, holder: int, wanted: dict[str, list[_Want]], verify: bool) -> None:
    """Copy from one rank's file all that it holds of the wanted pieces."""
    index = read_index(path, manifest, holder)
    file = path / data_name(holder)
    problem = size_problem(path, manifest.file(file.name))
    if problem:
        raise CheckpointCorrupt(f"{path}: {problem}; use another checkpoint or restore the file")
    needed = [p for p in index.pieces if any(intersect(p.box, box_of(w.piece)) for w in wanted.get(p.name, ()))]
    try:
        if verify:
            _verify(file, index, needed)
        data = _mapped(file, index)
        for saved in needed:
            _copy(data, saved, wanted[saved.name])
    except OSError as error:
        raise CheckpointCorrupt(f"{file}: unreadable ({error.strerror}); use another checkpoint") from error


def _verify(file: Path, index: Index, needed: list[SavedPiece]) -> None:
    """Compare the checksums of the header and of the pieces about to be read."""
    with open(file, "rb", buffering=0) as opened:
        if checksum_range(opened, 0, index.header_size) != index.header_checksum:
            raise CheckpointCorrupt(f"{file}: its header was altered; use another checkpoint or restore the file")
        for piece in needed:
            begin, end = index.header_size + piece.begin, index.header_size + piece.end
            if checksum_range(opened, begin, end) != piece.checksum:
                raise CheckpointCorrupt(
                    f"{file}: the bytes of {piece.key} were altered (checksum differs); "
                    "use another checkpoint or restore the file"
                )


def _mapped(file: Path, index: Index) -> Tensor:
    """The data of a rank's file as bytes (uint8) that are read when touched; unmapped with the last view of it."""
    if index.size == index.header_size:
        return torch.empty(0, dtype=torch.uint8)
    with open(file, "rb") as opened:
        # Copy on write: torch warns of read-only memory, and nothing is ever written here.
        view = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(view, dtype=torch.uint8)[index.header_size :]


def _copy(data: Tensor, saved: SavedPiece, wants: list[_Want]) -> None:
    """Copy what a saved piece and the wanted ones share."""
    source = data[saved.begin : saved.end].view(dtype_of(saved.dtype)).view(saved.extent)
    with torch.no_grad():
        for want in wants:
            shared = intersect(saved.box, box_of(want.piece))
            if shared is not None:
                target = want.piece.tensor[window(shared, box_of(want.piece))]
                target.copy_(source[window(shared, saved.box)])
                want.missing -= volume(shared[1])
