"""Quantised products of layers that are cut over the tensor axis, of sequences that are cut over the context axis.

No block straddles a shard, so each rank quantises what it holds to the bits that one process would: only where all of a tensor,
or of a row, shares a scale do ranks have to agree on it first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from models.core import Spans, positions_of
from parallel.mesh import Mesh

Collective = Callable[[Tensor], Tensor]


class MeshAxes:
    """How one linear layer's operands lie on a mesh.

    cut: which dim of the weight the tensor axis cuts, `outputs`, `inputs` or none. spans: global positions of so many rows of
    whole sequences (but for the context axis). share: of so many rows of the layer's input where each rank of the tensor axis
    has only a share of the sequence, None where it has all. gather, scatter: along the sequence over the tensor axis, where it
    has a share.
    """

    def __init__(
        self,
        mesh: Mesh,
        cut: str,
        spans: Callable[[int], Spans],
        share: Callable[[int], Spans] | None = None,
        gather: Collective | None = None,
        scatter: Collective | None = None,
    ) -> None:
        self._mesh, self._cut, self._spans, self._share = mesh, cut, spans, share
        self._gather, self._scatter = gather, scatter

    def positions(self, length: int) -> Tensor:
        return positions_of((self._share or self._spans)(length), torch.device("cpu"))

    def positions_out(self, length: int) -> Tensor:
        return positions_of(self._spans(length), torch.device("cpu"))

    def largest(self, amax: Tensor, over: str) -> Tensor:
        tensor = over in ("tensor", self._cut) or (over == "tokens" and self._share is not None)
        context = over in ("tensor", "tokens", "rows")
        for there, group in (
            (tensor and self._mesh.config.tensor > 1, self._mesh.tensor_group),
            (context and self._mesh.config.context > 1, self._mesh.context_group),
        ):
            if there:
                amax = amax.contiguous()
                dist.all_reduce(amax, op=dist.ReduceOp.MAX, group=group)
        return amax

    def gather(self, x: Tensor, dim: int) -> Tensor:
        if self._gather is None:
            return x
        whole = self._gather(x)  # along dim 0
        if dim == 0:
            return whole
        return whole.unflatten(0, (-1, x.shape[0])).movedim(0, dim).flatten(dim, dim + 1)

    def scatter(self, gradient: Tensor) -> Tensor:
        return gradient if self._scatter is None else self._scatter(gradient)
