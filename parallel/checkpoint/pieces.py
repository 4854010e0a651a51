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


def rectangles_of_range(
    shape: tuple[int, ...], start: int, stop: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
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
        for inner, size, at in rectangles_of_range(shape[1:], inside, end - index * row):
            yield (index, *inner), (1, *size), position - start + at
        position = end


Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and extent of a rectangle, one number a dim each."""


def volume(extent: tuple[int, ...]) -> int:
    """Number of elements of a rectangle; 1 for a scalar."""
    count = 1
    for size in extent:
        count *= size
    return count


def box_of(piece: Piece) -> Box:
    """The rectangle that a piece covers."""
    return tuple(piece.offset), tuple(piece.tensor.shape)


def intersect(a: Box, b: Box) -> Box | None:
    """The rectangle two rectangles share, None where they share no element."""
    offset = tuple(map(max, a[0], b[0]))
    extent = tuple(min(i + m, j + n) - o for i, m, j, n, o in zip(*a, *b, offset, strict=True))
    return (offset, extent) if all(size > 0 for size in extent) else None


def window(box: Box, inside: Box) -> tuple[slice, ...]:
    """Where `box` lies in a tensor that holds the rectangle `inside`, as an index."""
    return tuple(slice(o - p, o - p + n) for o, n, p in zip(*box, inside[0], strict=True))


def overlapping(boxes: list[Box]) -> tuple[Box, Box] | None:
    """The first two rectangles that share an element, None where none do. Sweeps along dim 0."""
    ordered = sorted(boxes)
    for i, first in enumerate(ordered):
        for second in ordered[i + 1 :]:
            if first[0] and second[0][0] >= first[0][0] + first[1][0]:
                break
            if intersect(first, second):
                return first, second
    return None


def blocks(piece: Piece, limit: int) -> Iterator[Piece]:
    """The piece as consecutive rows of at most `limit` bytes each, or one row; as it is where it is no larger."""
    if piece.tensor.nbytes <= limit or not piece.shape:
        yield piece
        return
    rows = max(1, limit * piece.tensor.shape[0] // piece.tensor.nbytes)
    for start in range(0, piece.tensor.shape[0], rows):
        offset = (piece.offset[0] + start, *piece.offset[1:])
        yield Piece(piece.name, piece.shape, offset, piece.tensor[start : start + rows])


def check_piece(piece: Piece) -> None:
    """Refuse a piece that does not lie in its logical tensor: an engine's mistake, found before it is written."""
    offset, extent = box_of(piece)
    fits = len(piece.shape) == len(offset) == len(extent) and all(
        o >= 0 and o + n <= size for o, n, size in zip(offset, extent, piece.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"piece {piece.name}: a rectangle {list(extent)} at {list(offset)} does not lie in {list(piece.shape)}"
        )
