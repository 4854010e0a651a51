"""State as pieces: from (name, parameter, a flat range of it) to rectangles of logical tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from models.parameters import Declaration, rectangles
from parallel.checkpoint.pieces import Piece, rectangles_of_range

MOMENT_PREFIX = "optimizer."


def pieces_of_range(name: str, found: Declaration, flat: Tensor, start: int) -> Iterator[Piece]:
    """Pieces of the elements [start, start + len(flat)) of a local parameter.

    flat: 1-D view of live state. found: the parameter's declaration, which says where the local tensor lies in the whole.
    """
    for offset, extent, at in rectangles_of_range(found.local_shape, start, start + flat.numel()):
        count = 1
        for size in extent:
            count *= size
        local = flat[at : at + count].view(extent)
        for window, place in rectangles(found, offset, extent):
            yield Piece(name, found.shape, place, local[window])


def parameter_pieces(
    name: str, found: Declaration, master: Tensor, moments: dict[str, Tensor], start: int, weights_only: bool
) -> Iterator[Piece]:
    """Pieces of one parameter's master weights and moments, given as flat ranges that begin at `start`."""
    yield from pieces_of_range(name, found, master, start)
    if not weights_only:
        for key, value in moments.items():
            yield from pieces_of_range(f"{MOMENT_PREFIX}{key}.{name}", found, value, start)
