"""Checkpoints written a tensor at a time: the same bits however they are cut, memory of one tensor, nothing half-made."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.huggingface import logical_shapes
from parallel.checkpoint import rewrite
from parallel.checkpoint.cuts import files_by_layout, files_by_size
from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.inspect import verify_text
from parallel.checkpoint.manifest import read_index, read_manifest
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load
from parallel.checkpoint.rewrite import write_streamed
from parallel.checkpoint.store import Store
from parallel.config import ParallelConfig, ParallelError
from tests.parallel.cases import DIALECTS

SEQUENCE = 16


def tensors_of(model: ModelConfig) -> dict[str, Tensor]:
    """Numbers for every parameter, one moment of each, and a scalar that belongs to none."""
    generator = torch.Generator().manual_seed(1)
    shapes = logical_shapes(model)
    shapes |= {f"optimizer.exp_avg.{name}": shape for name, shape in shapes.items()} | {"other": ()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_back(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}
    load(path, [Piece(name, tuple(t.shape), (0,) * t.dim(), t) for name, t in found.items()])
    return found


@pytest.mark.parametrize(
    ("dialect", "degrees"),
    [
        ("llama", (1, 1, 1)),
        ("llama", (2, 2, 2)),
        ("gpt", (1, 4, 1)),
        ("gpt", (4, 1, 2)),
        ("post", (1, 1, 3)),
        ("qwen", (2, 1, 1)),
        ("experts", (2, 1, 2)),
        ("capacity", (2, 2, 1)),
    ],
    ids=str,
)
def test_every_layout_of_files_holds_the_same_bits(dialect: str, degrees: tuple[int, int, int], tmp_path: Path) -> None:
    model, layout = DIALECTS[dialect], ParallelConfig("torch", *degrees)
    tensors = tensors_of(model)
    files = files_by_layout(model, layout, shapes_of(tensors), torch.float32, SEQUENCE)
    asked: list[str] = []
    path = write_streamed(tmp_path, 3, files, lambda name: asked.append(name) or tensors[name], {"tokens": 7})  # type: ignore[func-returns-value]
    assert sorted(asked) == sorted(tensors), "each tensor is made once"
    assert all(torch.equal(found, tensors[name]) for name, found in read_back(path, tensors).items())
    text, good = verify_text(path)
    assert good, text
    assert read_manifest(path).state == {"tokens": 7}
    sizes = [sum(piece.tensor.numel() for piece in pieces) for pieces in files]
    assert len(sizes) == np.prod(degrees)
    assert min(sizes) > 0 and (degrees[1] > 1 or max(sizes) <= 1.6 * sum(sizes) / len(sizes)), sizes


def test_files_over_the_limit_of_open_ones_are_written_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "OPEN_FILES", 3)
    model = DIALECTS["llama"]
    tensors = tensors_of(model)
    files = files_by_layout(model, ParallelConfig("torch", 2, 2, 2), shapes_of(tensors), torch.float32, SEQUENCE)
    path = write_streamed(tmp_path, 0, files, tensors.__getitem__, {})
    assert all(torch.equal(found, tensors[name]) for name, found in read_back(path, tensors).items())


def test_files_by_size_and_dtype(tmp_path: Path) -> None:
    tensors = tensors_of(DIALECTS["gpt"])
    files = files_by_size(shapes_of(tensors), torch.bfloat16, 6000)
    path = write_streamed(tmp_path, 0, files, tensors.__getitem__, {})
    manifest = read_manifest(path)
    assert manifest.world_size == len(files) > 3
    for rank in range(manifest.world_size):
        index = read_index(path, manifest, rank)
        assert index.size - index.header_size <= 6000 or len(index.pieces) == 1
    for name, found in read_back(path, tensors).items():
        assert torch.equal(found, tensors[name].bfloat16().float()), name


def test_memory_is_one_tensor_not_the_model(tmp_path: Path) -> None:
    """Tensors are numpy's here, whose allocations tracemalloc counts; so are the copies of parts and of dtypes."""
    shapes = {f"t{index}": (256, 1024) for index in range(24)}
    one = 256 * 1024 * 4

    def read(name: str) -> Tensor:
        return torch.from_numpy(np.full((256, 1024), float(name[1:]), np.float32))

    tracemalloc.start()
    path = write_streamed(tmp_path, 0, files_by_size(shapes, torch.float32, 5 * one), read, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * one, peak / one
    assert read_manifest(path).size > 24 * one


def test_a_tensor_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    tensors = tensors_of(DIALECTS["llama"])

    def read(name: str) -> Any:
        if name == "layers.2.ffn_norm.weight":
            raise CheckpointError("no such bytes")
        return tensors[name]

    files = files_by_size(shapes_of(tensors), torch.float32, 20000)
    with pytest.raises(CheckpointError, match="no such bytes"):
        write_streamed(tmp_path, 0, files, read, {})
    assert Store(tmp_path).latest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["attempt"]


def test_a_layout_that_does_not_divide_is_refused() -> None:
    model = DIALECTS["llama"]
    for layout, told in (
        (ParallelConfig("torch", 8, 1, 1), "model.heads=4"),
        (ParallelConfig("torch", 1, 5, 1), "stages"),
    ):
        with pytest.raises(ParallelError, match=told):
            files_by_layout(model, layout, logical_shapes(model), torch.float32, SEQUENCE)
