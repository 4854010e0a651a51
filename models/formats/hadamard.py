"""Rotation by a Hadamard matrix along one dimension: it spreads an outlier over its group, and products of two tensors that
are rotated along the dimension they sum over stay what they were (QuIP#, arXiv 2402.04396; for MXFP4, arXiv 2502.20586).

By butterflies and not by a matrix product, whose order of sums depends on shapes: so a shard is rotated to the same bits as
the whole.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.random import uniform


def rotate(x: Tensor, dim: int, size: int, signs: Tensor | None = None) -> Tensor:
    """Groups of `size` elements along `dim`, a multiple of it, times signs, times the orthonormal Hadamard matrix.

    size: a power of two. signs: float32 [size] of 1 and -1, or None for none. Returns float32, of the shape of x.
    """
    moved = x.movedim(dim, -1).to(torch.float32)
    groups = moved.unflatten(-1, (-1, size))
    groups = groups if signs is None else groups * signs
    half = 1
    while half < size:
        pairs = groups.unflatten(-1, (-1, 2, half))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        groups = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        half *= 2
    return (groups * (1 / math.sqrt(size))).flatten(-2).movedim(-1, dim)


def random_signs(key: int, size: int) -> Tensor:
    """float32 [size] of 1 and -1, a function of the key."""
    return torch.where(uniform(key, torch.arange(size, device="cpu")) < 0.5, -1.0, 1.0).to(torch.float32)
