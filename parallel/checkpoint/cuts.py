"""Which file of a checkpoint holds what: by size, or as the ranks of a layout would cut it. Pieces on the meta device.

Any checkpoint loads at any layout; files cut for a layout let each of its ranks find its state in its own file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from models.blocks import block_count
from models.config import ModelConfig
from models.decoder import build_block, named_parameters
from models.layers import Layers, PlainLayers
from models.parameters import Declaration, declaration, rectangles
from parallel.check import check_model
from parallel.checkpoint.pieces import Piece
from parallel.config import ParallelConfig
from parallel.engines.state import MOMENT_PREFIX
from parallel.stages import stage_bounds


def files_by_size(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, limit: int) -> list[list[Piece]]:
    """Whole tensors in files of at most `limit` bytes, or one tensor."""
    files: list[list[Piece]] = [[]]
    size = 0
    for name, shape in shapes.items():
        piece = _planned(name, shape, (0,) * len(shape), shape, dtype)
        if files[-1] and size + piece.tensor.nbytes > limit:
            files.append([])
            size = 0
        files[-1].append(piece)
        size += piece.tensor.nbytes
    return files


def files_by_layout(
    model: ModelConfig, parallel: ParallelConfig, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, sequence: int
) -> list[list[Piece]]:
    """Files as the ranks of tensor × data × pipeline would cut them, so that a rank finds most of its state in its own.

    The tensor axis cuts as the layers do, the pipeline axis as stages of `sequence` tokens are cut for 1F1B, the data
    axis by rows. shapes: of the parameters, and of moments named `optimizer.<kind>.<parameter>`; what is neither goes to
    file 0. ParallelError where the model does not divide.
    """
    check_model(parallel, model, sequence)
    bounds = stage_bounds(model, parallel.pipeline, sequence)
    found = _declarations(model, parallel.tensor)
    files: list[list[Piece]] = [[] for _ in range(parallel.model_parallel * parallel.data)]
    for name, shape in shapes.items():
        owner = name.removeprefix(MOMENT_PREFIX).partition(".")[2] if name.startswith(MOMENT_PREFIX) else name
        block, about = found.get(owner, (0, None))
        stage = next(i for i, stop in enumerate(bounds[1:]) if block < stop)
        for tensor, data, offset, extent in _shares(about, shape, parallel.tensor, parallel.data):
            place = tensor + parallel.tensor * (data + parallel.data * stage)
            files[place].append(_planned(name, shape, offset, extent, dtype))
    return files


def _planned(
    name: str, shape: tuple[int, ...], offset: tuple[int, ...], extent: tuple[int, ...], dtype: torch.dtype
) -> Piece:
    return Piece(name, shape, offset, torch.empty(extent, dtype=dtype, device="meta"))


def _shares(
    about: Declaration | None, shape: tuple[int, ...], tensor: int, data: int
) -> Iterator[tuple[int, int, tuple[int, ...], tuple[int, ...]]]:
    """(tensor rank, data rank, offset, extent) of every rectangle of a logical tensor that is cut over so many ranks.

    First as the layer cuts it, then the local parameter by rows as FSDP2 does: even shares, the last one short. What no
    layer cuts is shared out among the data ranks of tensor rank 0.
    """
    if about is None or about.shape != shape:
        about = Declaration(shape, None, (), 1, 0, 0.0)
    for rank in range(1 if about.whole_on_each else tensor):
        here = replace(about, rank=rank)
        local = here.local_shape
        if not local:
            yield rank, 0, (), ()
            return
        share = max(1, -(-local[0] // data))
        for owner, start in enumerate(range(0, max(1, local[0]), share)):
            zeros = (0,) * (len(local) - 1)
            for window, offset in rectangles(here, (start, *zeros), (min(share, local[0] - start), *local[1:])):
                yield rank, owner, offset, tuple(part.stop - part.start for part in window)


def _declarations(model: ModelConfig, tensor: int) -> dict[str, tuple[int, Declaration]]:
    """Parameter -> (index of its block, how tensor rank 0 of so many holds it)."""
    if tensor > 1:
        from parallel.paper import declared_on_paper  # megatron-core takes seconds to import

        return declared_on_paper(model, tensor)
    return declared(model, PlainLayers())


def declared(model: ModelConfig, layers: Layers) -> dict[str, tuple[int, Declaration]]:
    """Parameter -> (index of its block, its declaration), of a model made of these layers."""
    with torch.device("meta"):
        blocks = [build_block(model, layers, index) for index in range(block_count(model))]
    return {
        name: (index, declaration(parameter))
        for index, block in enumerate(blocks)
        for name, parameter in named_parameters(iter([block]))
    }
