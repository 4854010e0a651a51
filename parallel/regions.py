"""Into and out of the regions where the tensor axis cuts a layer: collectives with their gradients.

megatron-core's own sequence-parallel regions allocate on `torch.cuda.current_device()`, so these are written on torch's
collectives; one code path then serves CPU, where it is proven, and GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GatherSequence(torch.autograd.Function):
    """[S/T, B, H] -> [S, B, H]; backward sums the ranks' gradients and keeps the own share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return reduce_scatter(gradient, ctx.group), None


class ScatterSequence(torch.autograd.Function):
    """Partial sums [S, B, H] -> summed share [S/T, B, H]; backward gathers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_gather(gradient, ctx.group), None


class SumGradient(torch.autograd.Function):
    """Identity; backward sums over the group. megatron-core's own leaves a gradient that is not contiguous unsummed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce(gradient, ctx.group), None


class Sum(torch.autograd.Function):
    """Sum over the group; backward is the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum, in memory of its own."""
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n, …] of every rank -> [n x ranks, …]."""
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return whole


def reduce_scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[n x ranks, …] -> the own [n, …] of the sum."""
    share = x.new_empty(x.shape[0] // group.size(), *x.shape[1:])
    dist.reduce_scatter_tensor(share, x.contiguous(), group=group)
    return share


class KeepShare(torch.autograd.Function):
    """A replicated [S, B, H] -> the own share [S/T, B, H], a copy: a view would keep all rows alive as long as the share is;
    backward gathers the shares' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.chunk(group.size(), dim=0)[group.rank()].clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_gather(gradient, ctx.group), None


class Vocabulary:
    """The vocabulary over a group of ranks, each of which holds `rows` of it, in order."""

    def __init__(self, group: dist.ProcessGroup, rows: int) -> None:
        self._group = group
        self.first, self.size = group.rank() * rows, group.size() * rows

    def gather(self, x: Tensor) -> Tensor:
        return all_gather(x.unsqueeze(0), self._group)
