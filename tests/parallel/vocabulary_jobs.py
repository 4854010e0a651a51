"""What ranks do in the tests of a vocabulary that is cut over them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.kernels.cross_entropy import cross_entropy
from models.kernels.linear_cross_entropy import linear_cross_entropy
from parallel.config import ParallelConfig
from parallel.mesh import Mesh
from parallel.regions import Vocabulary
from tests.parallel.jobs import CPU

Losses = tuple[Tensor, Tensor, Tensor]
"""Losses, gradient of the input, of the weight."""


def made(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [S, B, H], weight [V, H], targets, upstream gradient."""
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 2, 8), (52, 8)))
    targets = torch.randint(52, (6, 2), generator=generator)
    return x.to(dtype), weight.to(dtype), targets, torch.randn(6, 2, generator=generator)


def losses(kind: str, terms: dict[str, float], told: bool, dtype: torch.dtype, degree: int) -> list[Losses]:
    """Of a head and of its logits, each with the vocabulary over `degree` ranks, put together again."""
    mesh = Mesh(ParallelConfig(tensor=degree), CPU)
    x, weight, targets, upstream = made(dtype)
    rows = len(weight) // degree
    axis = Vocabulary(mesh.tensor_group, rows) if degree > 1 else None
    found = []
    for fused in (True, False):
        mine, ours = weight[rows * mesh.place.tensor :][:rows].clone().requires_grad_(), x.clone().requires_grad_()
        if fused:
            weights = upstream * 3 if told else None
            out = linear_cross_entropy(ours, mine, targets, weights=weights, axis=axis, chunk=5, kernels=kind, **terms)
        else:
            out = cross_entropy(ours @ mine.t(), targets, axis=axis, in_place=True, kernels=kind, **terms)
        out.backward(upstream.to(out.dtype))
        assert ours.grad is not None and mine.grad is not None
        shares = [torch.empty_like(mine.grad) for _ in range(degree)]
        if degree > 1:
            dist.all_reduce(ours.grad, group=mesh.tensor_group)
            dist.all_gather(shares, mine.grad, group=mesh.tensor_group)
        found.append((out.detach(), ours.grad, torch.cat(shares) if degree > 1 else mine.grad))
    mesh.close()
    return found
