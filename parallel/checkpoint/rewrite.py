"""Writing a checkpoint from tensors that are made one at a time, in one process: imports, conversions, other file layouts.

What each file holds is planned before (`cuts`), then every tensor is made once and its parts go to their files. So memory
is one tensor, whatever the model and however many files.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoint.commit import Save, abandon, commit
from parallel.checkpoint.errors import CheckpointError, describe_os_error
from parallel.checkpoint.files import BLOCK, DataFile, Index, data_name, plan_file, write_index
from parallel.checkpoint.pieces import Piece, blocks
from parallel.checkpoint.store import Store

OPEN_FILES = 256
"""Files written at once; for more, the tensors are made again."""

Read = Callable[[str], Tensor]


def write_streamed(directory: Path, step: int, files: Sequence[list[Piece]], read: Read, state: dict[str, Any]) -> Path:
    """Commit a checkpoint whose file r holds the pieces `files[r]`, tensors on the meta device that say shape and dtype.

    read: name -> the whole tensor, converted to the piece's dtype. Together the pieces must cover every tensor once.
    Raises CheckpointError where it cannot be written; nothing but an empty `directory` is left then.
    """
    attempt = Store(directory).open_attempt()
    saves = [Save(Store(directory, rank, len(files), attempt), step, 1, timeout=60.0) for rank in range(len(files))]
    try:
        saves[0].begin()
        for start in range(0, len(files), OPEN_FILES):
            _write_files(saves[start : start + OPEN_FILES], files[start : start + OPEN_FILES], read)
        commit(saves[0], state)
    except BaseException as error:
        abandon(saves[0], str(error))
        saves[0].store.set_aside(saves[0].temporary)
        if isinstance(error, OSError):
            raise CheckpointError(describe_os_error(error, directory)) from error
        raise
    return saves[0].target


def _write_files(saves: Sequence[Save], files: Sequence[list[Piece]], read: Read) -> None:
    """Write some data files side by side, making each tensor that they hold once, then their indexes."""
    # Every file's pieces lie in one order, by falling item size and then as they were named first.
    widest: dict[str, int] = {}
    for piece in itertools.chain.from_iterable(files):
        widest.setdefault(piece.name, piece.tensor.element_size())
    order = {name: place for place, name in enumerate(sorted(widest, key=lambda name: -widest[name]))}
    with contextlib.ExitStack() as stack:
        opened: list[tuple[Save, DataFile]] = []
        parts: dict[str, list[tuple[DataFile, Piece]]] = {name: [] for name in order}
        for save, pieces in zip(saves, files, strict=True):
            pieces = [block for piece in pieces for block in blocks(piece, BLOCK)]
            pieces.sort(key=lambda piece: order[piece.name])
            saved, kept = plan_file(pieces)
            file = DataFile(save.temporary / data_name(save.store.rank), saved)
            stack.callback(file.close)
            opened.append((save, file))
            for place in kept:
                parts[pieces[place].name].append((file, pieces[place]))
        for name, wanted in parts.items():
            whole = read(name)
            for file, piece in wanted:
                file.append(_bytes(whole, piece))
            del whole
        for save, file in opened:
            write_index(save.temporary, _index_of(save, file))


def _bytes(whole: Tensor, piece: Piece) -> memoryview:
    """The bytes of a piece of a tensor, which are copied only where it is a part or of another dtype."""
    assert tuple(whole.shape) == tuple(piece.shape), (piece.name, tuple(whole.shape), piece.shape)
    window = tuple(slice(at, at + size) for at, size in zip(piece.offset, piece.tensor.shape, strict=True))
    part = whole[window].to(piece.tensor.dtype).contiguous()
    return part.reshape(-1).view(torch.uint8).numpy().data


def _index_of(save: Save, file: DataFile) -> Index:
    checksum, store = file.finish(), save.store
    assert store.attempt is not None
    size = file.header_size + (file.pieces[-1].end if file.pieces else 0)
    return Index(
        store.rank, store.world_size, save.step, store.attempt, save.sequence, size, checksum, file.header_size,
        file.header_checksum, tuple(file.pieces),
    )  # fmt: skip
