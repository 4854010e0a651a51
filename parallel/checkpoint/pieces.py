"""Pieces: the one language in which saved state is spoken.

A piece is a rectangle of a logical tensor: its name, the shape of the whole, where the rectangle begins, and the live
tensor that holds it. Engines describe their state as pieces, whatever their own layout; saving, loading, resharding,
import and export speak of nothing else. Writing into `Piece.tensor` changes the live state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A rectangle of a logical tensor.

    name: logical name, the same at every layout, e.g. `layers.3.attention.qkv.weight` or `optimizer.exp_avg.<that>`.
    shape: shape of the whole logical tensor.
    offset: where this rectangle begins in the whole, one number a dim.
    tensor: the rectangle itself, a view of the live state with as many dims as `shape`.
    """

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor


def rectangles_of_range(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Cut the elements [start, stop) of a row-major tensor into rectangles.

    ZeRO partitions flattened tensors at any element, so a partition of a matrix is a partial row, full rows and a
    partial row. Yields (offset, extent, flat position of the rectangle's first element relative to `start`), in flat
    order; every rectangle is contiguous in the flat order.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,), 0
        return
    if len(shape) == 0:
        yield (), (), 0
        return
    row = 1
    for extent in shape[1:]:
        row *= extent
    position = start
    while position < stop:
        index, inside = divmod(position, row)
        if inside == 0 and stop - position >= row:
            rows = (stop - position) // row
            yield (index, *[0] * (len(shape) - 1)), (rows, *shape[1:]), position - start
            position += rows * row
            continue
        end = min(stop, (index + 1) * row)
        for offset, extent, at in rectangles_of_range(shape[1:], inside, end - index * row):
            yield (index, *offset), (1, *extent), position - start + at
        position = end
