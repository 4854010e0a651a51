"""State as pieces: from (name, parameter, a flat range of it) to rectangles of logical tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from models.config import ModelConfig
from models.moe.routing import Routing
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


def routing_pieces(routing: Routing, model: ModelConfig) -> Iterator[Piece]:
    """Pieces of what the routers of this process remember, where the model has routers that remember something."""
    for layer, state in routing.states.items():
        name = f"layers.{layer}.feed_forward.router"
        if model.moe.bias_rate:
            yield Piece(f"{name}.bias", tuple(state.bias.shape), (0,), state.bias)
        if model.moe.keeps_frequencies:
            yield Piece(f"{name}.frequency", tuple(state.frequency.shape), (0,), state.frequency)
