"""A load reads what it needs and makes nothing of the size of what it loads."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import savers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.checkpoint import reader, writer
from parallel.checkpoint.files import CHUNK
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.store import Store

SHAPE = (512, 64)
ROW, BLOCK = 64 * 4, 16 * 64 * 4


class Made(TorchDispatchMode):
    """Bytes of all storages that operations make, and of all that they copy."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.copied = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(arguments) if torch.is_tensor(t)}
        result = function(*arguments, **(keywords or {}))
        if function is torch.ops.aten.copy_.default:
            self.copied += arguments[0].nbytes
        for tensor in tree_leaves(result):
            if torch.is_tensor(tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.made += tensor.untyped_storage().nbytes()
        return result


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tensors of 128 kB in blocks of 4 kB, by one rank."""
    monkeypatch.setattr(writer, "BLOCK", BLOCK)
    (saver,) = savers(tmp_path, 1, asynchronous=False)
    saver.save(1, [Piece(name, SHAPE, (0, 0), torch.full(SHAPE, value)) for name, value in (("a", 1.0), ("b", 2.0))])
    return Store(tmp_path).path(1)


@pytest.mark.parametrize(("start", "rows"), [(0, 64), (100, 50), (511, 1), (0, 512)])
def test_only_the_bytes_needed_are_read(saved: Path, start: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    checksum = reader.checksum_range

    def counted(file: Any, begin: int, end: int) -> str:
        checked.append(end - begin)
        return checksum(file, begin, end)

    monkeypatch.setattr(reader, "checksum_range", counted)
    target = torch.zeros(rows, 64)
    for verify in (False, True):
        checked.clear()
        with Made() as made:
            reader.load(saved, [Piece("a", SHAPE, (start, 0), target.zero_())], verify=verify)
        assert bool((target == 1).all())
        assert made.copied == rows * ROW, "no byte of b, and none of a twice"
        header, *pieces = checked or [0]
        assert (header > 0) == verify
        assert sum(pieces) <= (rows * ROW + 2 * BLOCK) * verify, "what the checksums cover: the blocks it touches"


def test_memory_beyond_the_target_is_a_constant(tmp_path: Path) -> None:
    """Whatever the size: the buffer of the checksum, the index, and no copy of what is loaded."""
    peaks = []
    for rows in (1 << 12, 1 << 15):
        directory = tmp_path / str(rows)
        whole = torch.arange(rows * 256, dtype=torch.float32).view(rows, 256)
        (saver,) = savers(directory, 1, asynchronous=False)
        saver.save(1, [Piece("a", tuple(whole.shape), (0, 0), whole)])
        target = torch.zeros_like(whole)
        tracemalloc.start()
        with Made() as made:
            reader.load(Store(directory).path(1), [Piece("a", tuple(whole.shape), (0, 0), target)])
        peaks.append(made.made + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert torch.equal(target, whole)
    assert max(peaks) <= CHUNK + (1 << 20), peaks
