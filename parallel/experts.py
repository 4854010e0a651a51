"""Expert parallelism: tokens travel to the ranks that hold their experts, and back (GShard, arXiv 2006.16668).

Every rank of the tensor axis sends the same tokens over its own expert group, to its own cut of the experts: nothing has to be
gathered again on arrival, at the price of sending what sequence parallelism would have let each rank send a share of.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.mesh import Mesh


def same_on_replicas(logits: Tensor, mesh: Mesh) -> Tensor:
    """Logits that every replica has computed from the same tokens, bitwise the same: an expert's products round a row otherwise
    at another place among the rows of all ranks, and sampling must choose alike everywhere."""
    if mesh.config.expert > 1:
        logits = logits.contiguous()
        dist.broadcast(logits, group=mesh.replica_group, group_src=0)
    return logits


class MeshExperts:
    """The expert axis of a mesh: consecutive experts on each rank, all-to-all between them."""

    def __init__(self, mesh: Mesh) -> None:
        self.degree, self.rank, self._group = mesh.config.expert, mesh.place.expert, mesh.expert_group

    def share(self, experts: int) -> int:
        return experts // self.degree

    def send(self, rows: Tensor, counts: Tensor) -> _Travelling:
        ours = counts.view(self.degree, -1)
        theirs = torch.empty_like(ours)
        dist.all_to_all_single(theirs, ours, group=self._group)
        return _Travelling(rows, ours.sum(1).tolist(), theirs, self._group)


class _Travelling:
    """theirs: int64 [degree, held], how many rows each rank sends to each expert here."""

    def __init__(self, rows: Tensor, sent: list[int], theirs: Tensor, group: dist.ProcessGroup) -> None:
        self._sent, self._received, self._group = sent, theirs.sum(1).tolist(), group
        self._counts = theirs.sum(0)
        expert = torch.arange(theirs.shape[1], device=theirs.device).repeat(theirs.shape[0])
        # rows come ordered by sender, then by expert
        self._order = torch.repeat_interleave(expert, theirs.flatten()).argsort(stable=True)
        self._pending: list[Any] = []
        self._rows = _Exchange.apply(rows, self._sent, self._received, group, self._pending)

    def arrived(self) -> tuple[Tensor, Tensor]:
        while self._pending:
            self._pending.pop()[0].wait()
        return self._rows[self._order], self._counts

    def back(self, results: Tensor) -> Tensor:
        place = torch.empty_like(self._order)
        place[self._order] = torch.arange(place.numel(), device=place.device)
        return _Exchange.apply(results[place], self._received, self._sent, self._group, None)


class _Exchange(torch.autograd.Function):
    """All-to-all of rows [sum(sent), H] -> [sum(received), H], whose gradient travels back. With a list in `pending` the call
    returns at once, and leaves in it what must be waited for (and the rows, which must live as long)."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        sent: list[int],
        received: list[int],
        group: dist.ProcessGroup,
        pending: list[Any] | None,
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        found = rows.new_empty(sum(received), rows.shape[1])
        rows = rows.contiguous()
        work = dist.all_to_all_single(found, rows, received, sent, group=group, async_op=pending is not None)
        if pending is not None:
            pending.append((work, rows))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        found = gradient.new_empty(sum(ctx.sent), gradient.shape[1])
        dist.all_to_all_single(found, gradient.contiguous(), ctx.sent, ctx.received, group=ctx.group)
        return found, None, None, None, None
