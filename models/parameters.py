"""What a parameter is beyond its numbers: which part of which logical tensor, and how it begins.

Layers call `declare` on each parameter they make. Initialisation, checkpoints, norms and plans read the declaration, so
none of them needs to know which layer a parameter came from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.random import fill_normal, stream_key


@dataclass(frozen=True)
class Declaration:
    """How a local parameter is cut from its logical tensor, and how it is initialised.

    shape: of the logical tensor. dim: the one that is cut over the tensor axis, None where every rank holds the whole.
    parts: extents along `dim` of the matrices fused in one parameter (query, key, value; the experts of this rank), each cut
    in `degree` shares. first: where the first part begins along `dim`. expert: whether the expert axis cuts it, so that only
    the expert-data axis replicates it.
    """

    shape: tuple[int, ...]
    dim: int | None
    parts: tuple[int, ...]
    degree: int
    rank: int
    std: float  # 0: constant
    constant: float = 0.0
    first: int = 0
    expert: bool = False

    def slabs(self) -> Iterator[tuple[int, int, int]]:
        """(local start, global start, extent) along `dim` of each fused part."""
        local, whole = 0, self.first
        for part in self.parts:
            share = part // self.degree
            yield local, whole + self.rank * share, share
            local += share
            whole += part

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the parameter on this rank."""
        if self.dim is None:
            return self.shape
        held = sum(self.parts) // self.degree
        return tuple(held if d == self.dim else extent for d, extent in enumerate(self.shape))

    @property
    def whole_on_each(self) -> bool:
        """Whether every rank of the tensor axis holds the same elements."""
        return self.dim is None or (self.expert and self.degree == 1)

    @property
    def local_numel(self) -> int:
        """Elements of the parameter on this rank."""
        return math.prod(self.local_shape)


def declare(
    parameter: nn.Parameter,
    *,
    shape: tuple[int, ...] | None = None,
    std: float = 0.0,
    constant: float = 0.0,
    dim: int | None = None,
    parts: tuple[int, ...] = (),
    degree: int = 1,
    rank: int = 0,
) -> None:
    """Attach a Declaration to a parameter. shape: its local shape, where an engine may already have cut its storage."""
    shape = shape or tuple(parameter.shape)
    if dim is not None:
        shape = tuple(extent * degree if d == dim else extent for d, extent in enumerate(shape))
        parts = parts or (shape[dim],)
    parameter.declaration = Declaration(shape, dim, parts, degree, rank, std, constant)  # type: ignore[attr-defined]


def declare_experts(
    parameter: nn.Parameter,
    *,
    rows: tuple[int, ...],
    experts: int,
    first: int,
    held: int,
    columns: int = 0,
    std: float = 0.0,
    degree: int = 1,
    rank: int = 0,
) -> None:
    """Attach a Declaration to the matrices [rows, columns] of `held` of `experts` experts, one below the other in dim 0.

    rows: extents of the matrices fused in one expert's (gate and up). columns: 0 for vectors. first: index of the first expert
    held. degree, rank: the cut of every one of `rows` over the tensor axis.
    """
    high = sum(rows)
    parts = rows * held if degree > 1 else (high * held,)
    parameter.declaration = Declaration(  # type: ignore[attr-defined]
        (experts * high, columns) if columns else (experts * high,),
        0,
        parts,
        degree,
        rank,
        std,
        first=first * high,
        expert=True,
    )


def declaration(parameter: Tensor) -> Declaration:
    """The declaration of a parameter; a parameter without one is a mistake of ours."""
    found = getattr(parameter, "declaration", None)
    assert isinstance(found, Declaration), "a layer made a parameter without declaring it"
    return found


def rectangles(
    found: Declaration, offset: tuple[int, ...], extent: tuple[int, ...]
) -> Iterator[tuple[tuple[slice, ...], tuple[int, ...]]]:
    """Where a rectangle of the local parameter lies in the logical tensor.

    offset, extent: the rectangle in local coordinates. Yields (slices into the rectangle, global offset) for each fused
    part it touches; the slices together cover the rectangle once.
    """
    if found.dim is None:
        yield tuple(slice(0, size) for size in extent), offset
        return
    start, stop = offset[found.dim], offset[found.dim] + extent[found.dim]
    for local, whole, share in found.slabs():
        low, high = max(start, local), min(stop, local + share)
        if low < high:
            window = tuple(
                slice(low - start, high - start) if d == found.dim else slice(0, size) for d, size in enumerate(extent)
            )
            place = tuple(whole + low - local if d == found.dim else at for d, at in enumerate(offset))
            yield window, place


@torch.no_grad()
def initialise(tensor: Tensor, name: str, seed: int, found: Declaration, offset: tuple[int, ...]) -> None:
    """Write initial values into a rectangle of a local parameter: a function of (seed, name, global offset) alone.

    tensor: the rectangle, in place, with as many dims as the parameter. offset: where it begins in the local parameter.
    """
    if tensor.is_meta:
        return
    if found.std == 0:
        tensor.fill_(found.constant)
        return
    key = stream_key(seed, "weights", name)
    for window, place in rectangles(found, offset, tuple(tensor.shape)):
        fill_normal(tensor[window], key, found.shape, place, found.std)
