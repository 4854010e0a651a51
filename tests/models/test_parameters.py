"""Shards know which part of which logical tensor they are: put together they are the whole, bitwise."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from models.parameters import Declaration, declaration, declare, initialise, rectangles
from models.random import fill_normal, stream_key

SEED = 11
NAME = "layers.0.attention.qkv.weight"


def whole(shape: tuple[int, ...], std: float = 0.1) -> Tensor:
    """The logical tensor, by the generator alone."""
    tensor = torch.empty(shape)
    fill_normal(tensor, stream_key(SEED, "weights", NAME), shape, (0,) * len(shape), std)
    return tensor


def shard(local: tuple[int, ...], dim: int | None, parts: tuple[int, ...], degree: int, rank: int) -> nn.Parameter:
    """A declared parameter as a layer of a rank would make it."""
    parameter = nn.Parameter(torch.full(local, float("nan")))
    declare(parameter, std=0.1, dim=dim, parts=parts, degree=degree, rank=rank)
    return parameter


def share(tensor: Tensor, dim: int, parts: tuple[int, ...], degree: int, rank: int) -> Tensor:
    """What a rank holds: its share of every fused part, side by side."""
    return torch.cat([part.chunk(degree, dim)[rank] for part in tensor.split(parts, dim)], dim)


CUTS = [
    ((16, 6), 0, (8, 4, 4)),  # query, key, value
    ((24, 6), 0, (12, 12)),  # gate, up
    ((16, 6), 0, (16,)),
    ((6, 16), 1, (16,)),  # row layer
    ((16,), 0, (8, 4, 4)),
]


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize(("shape", "dim", "parts"), CUTS)
def test_initialised_shards_are_the_whole(
    shape: tuple[int, ...], dim: int, parts: tuple[int, ...], degree: int
) -> None:
    local = tuple(extent // degree if d == dim else extent for d, extent in enumerate(shape))
    for rank in range(degree):
        parameter = shard(local, dim, parts, degree, rank)
        found = declaration(parameter)
        assert found.shape == shape
        assert found.local_shape == local
        initialise(parameter.data, NAME, SEED, found, (0,) * len(shape))
        assert torch.equal(parameter.data, share(whole(shape), dim, parts, degree, rank))


@pytest.mark.parametrize(("shape", "dim", "parts"), CUTS)
def test_a_rectangle_of_a_shard_is_initialised_alone(shape: tuple[int, ...], dim: int, parts: tuple[int, ...]) -> None:
    """As an engine that cuts a shard once more needs it; rectangles cross the borders of fused parts."""
    degree, rank, generator = 2, 1, random.Random(2)
    local = tuple(extent // degree if d == dim else extent for d, extent in enumerate(shape))
    found = declaration(shard(local, dim, parts, degree, rank))
    expected = share(whole(shape), dim, parts, degree, rank)
    for _ in range(30):
        bounds = [sorted(generator.sample(range(extent + 1), 2)) for extent in local]
        window = tuple(slice(low, high) for low, high in bounds)
        piece = torch.full_like(expected[window], float("nan"))
        initialise(piece, NAME, SEED, found, tuple(low for low, _ in bounds))
        assert torch.equal(piece, expected[window])


@pytest.mark.parametrize("degree", [1, 2, 4])
@pytest.mark.parametrize(("shape", "dim", "parts"), CUTS)
def test_rectangles_of_all_ranks_cover_the_whole_once(
    shape: tuple[int, ...], dim: int, parts: tuple[int, ...], degree: int
) -> None:
    covered = torch.zeros(shape)
    for rank in range(degree):
        found = Declaration(shape, dim, parts, degree, rank, std=0.1)
        for window, place in rectangles(found, (0,) * len(shape), found.local_shape):
            extent = torch.empty(found.local_shape)[window].shape
            covered[tuple(slice(at, at + size) for at, size in zip(place, extent, strict=True))] += 1
    assert torch.equal(covered, torch.ones(shape))


def test_replicated_and_constant_parameters() -> None:
    gain = nn.Parameter(torch.empty(8))
    declare(gain, constant=1.0)
    initialise(gain.data, "layers.0.attention_norm.weight", SEED, declaration(gain), (0,))
    assert torch.equal(gain.data, torch.ones(8))
    table = shard((5, 4), None, (), 1, 0)
    assert declaration(table).local_shape == (5, 4)
    initialise(table.data, NAME, SEED, declaration(table), (0, 0))
    assert torch.equal(table.data, whole((5, 4)))


def test_shape_given_where_storage_is_already_cut() -> None:
    parameter = nn.Parameter(torch.empty(0))
    declare(parameter, shape=(8, 6), std=0.1, dim=0, degree=2, rank=1)
    assert declaration(parameter).shape == (16, 6)
    assert declaration(parameter).parts == (16,)


def test_meta_tensors_stay_empty_and_undeclared_parameters_are_ours() -> None:
    parameter = nn.Parameter(torch.empty(4, 4, device="meta"))
    declare(parameter, std=1.0)
    initialise(parameter.data, NAME, SEED, declaration(parameter), (0, 0))
    assert parameter.is_meta
    with pytest.raises(AssertionError, match="without declaring"):
        declaration(nn.Parameter(torch.empty(1)))
