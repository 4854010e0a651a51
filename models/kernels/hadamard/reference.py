"""Rotation in plain torch, by butterflies and not by a matrix product, whose order of sums depends on shapes: so a shard is
rotated to the same bits as the whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rotate(x: Tensor, size: int, signs: Tensor | None) -> Tensor:
    """float32 of the shape of x, whose last dim is in groups of `size`."""
    groups = x.to(torch.float32).unflatten(-1, (-1, size))
    groups = groups if signs is None else groups * signs
    half = 1
    while half < size:
        pairs = groups.unflatten(-1, (-1, 2, half))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        groups = torch.stack((first + second, first - second), dim=-2).flatten(-3)
        half *= 2
    return (groups * (1 / math.sqrt(size))).flatten(-2)
