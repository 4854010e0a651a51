"""Ring attention (arXiv 2310.01889): queries stay, keys and values go round the context axis.

Each step attends to the block that has come, while the next one is on its way, and merges the result by log-sum-exp in float32.
Backward goes round once more: the blocks with the gradients of their keys and values, to which every rank adds its own, until
they are back where they belong. Blocks that the mask empties are not computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.attention_block import Drop, attend, attend_backward
from models.core import CoreSpec, Span, Spans, drop_weights, length_of, mask_for, parts_of, take_spans
from models.random import Clock

if TYPE_CHECKING:
    from parallel.context import SequenceCut


@dataclass(frozen=True)
class Task:
    """One block: local rows and columns [start, stop), the global positions they are, and what their mask is."""

    rows: Span
    columns: Span
    row_spans: Spans
    column_spans: Spans
    mask: str
    """full, causal (both are the same positions), or partial."""


def tasks(
    spec: CoreSpec, mine: Spans, theirs: Spans, marked: Callable[[Spans], bool] = lambda spans: False
) -> list[Task]:
    """Blocks of queries at `mine` and keys at `theirs` that are not empty, as few as full ones allow.

    marked: whether any sequence has a prefix at some columns, which then hides none of them by causality alone.
    A row's own positions come first: every row sees itself there, so its log-sum-exp is finite from then on.
    """
    rows, columns = _places(mine), _places(theirs)
    if all(spec.full(row, column) for row in mine for column in theirs):
        return [Task((0, length_of(mine)), (0, length_of(theirs)), mine, theirs, "full")]
    found = []
    for place, row in zip(rows, mine, strict=True):
        if all(spec.full(row, column) for column in theirs):
            found.append(Task(place, (0, length_of(theirs)), (row,), theirs, "full"))
            continue
        for at, column in zip(columns, theirs, strict=True):
            ahead = spec.causal and column[1] - 1 > row[0] and marked((column,))
            if spec.empty(row, column, marked=ahead):
                continue
            kind = "full" if spec.full(row, column) else "partial"
            within = spec.window == 0 or spec.window >= row[1] - row[0]
            if row == column and spec.causal and within and not ahead:
                kind = "causal"
            found.append(Task(place, at, (row,), (column,), kind))
    return sorted(found, key=lambda task: task.row_spans != task.column_spans)


def _places(spans: Spans) -> list[Span]:
    ends = [length_of(spans[: index + 1]) for index in range(len(spans))]
    return [(end - (stop - start), end) for end, (start, stop) in zip(ends, spans, strict=True)]


class RingCore:
    """Attention of this rank's queries to the keys and values of all ranks."""

    def __init__(
        self, spec: CoreSpec, clock: Clock, first_head: int, cut: SequenceCut, group: dist.ProcessGroup
    ) -> None:
        self.spec, self.clock, self.first_head, self.cut, self.group = spec, clock, first_head, cut, group

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int, training: bool) -> Tensor:
        """query [S/C, B, A, D], key and value [S/C, B, G, D] -> [S/C, B, A * D]."""
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        documents, prefix = parts_of(self.spec, self.clock, first_sample, q.shape[0])
        dropping, length = self.spec.dropout > 0 and training, q.shape[2] * self.cut.degree
        turn = _Turn(q.device, self, documents, prefix, first_sample, dropping, length)
        return _Ring.apply(q, k, v, turn).permute(2, 0, 1, 3).flatten(2)


@dataclass(frozen=True)
class _Turn:
    """One pass round the ring. length: S of the uncut sequence."""

    device: torch.device

    core: RingCore
    documents: Tensor | None
    prefix: Tensor | None
    first_sample: int
    dropping: bool
    length: int

    def tasks(self, step: int) -> Iterator[tuple[Task, Tensor | None, Drop | None]]:
        """Blocks of a step: each with its mask, where it is neither full nor plainly causal, and its dropout."""
        core, cut = self.core, self.core.cut
        source = (cut.rank - step) % cut.degree
        for task in tasks(core.spec, cut.spans(self.length), cut.spans(self.length, source), self._marked):
            if self._parted(task):
                continue
            yield task, self._mask(task), self._drop(task) if self.dropping else None

    def _marked(self, columns: Spans) -> bool:
        return self.prefix is not None and bool(take_spans(self.prefix, columns, 1).any())

    def _parted(self, task: Task) -> bool:
        """Whether rows and columns have no document in common in any sequence: their numbers do not meet."""
        if self.documents is None:
            return False
        ours, theirs = (take_spans(self.documents, spans, 1) for spans in (task.row_spans, task.column_spans))
        apart = (ours.amin(1) > theirs.amax(1)) | (theirs.amin(1) > ours.amax(1))
        return bool(apart.all())

    def _mask(self, task: Task) -> Tensor | None:
        if self.documents is None and task.mask != "partial":
            return None
        return mask_for(self.core.spec, task.row_spans, task.column_spans, self.documents, self.device, self.prefix)

    def _drop(self, task: Task) -> Drop:
        def drop(weights: Tensor) -> Tensor:
            core = self.core
            return drop_weights(
                weights, core.spec, self.first_sample, core.first_head, task.row_spans, task.column_spans, self.length
            )

        return drop


class _Ring(torch.autograd.Function):
    """q [B, A, s, D], k and v [B, G, s, D] -> [B, A, s, D] for the s = S/C positions of each rank."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, turn: _Turn) -> Tensor:
        degree = turn.core.cut.degree
        wide = torch.promote_types(q.dtype, torch.float32)
        mixed = torch.zeros(q.shape, dtype=wide, device=q.device)
        weight = torch.full(q.shape[:3], float("-inf"), dtype=wide, device=q.device)  # log of the sum of exponentials
        present = torch.stack((k, v))
        for step in range(degree):
            coming = _pass_on(present, turn) if step < degree - 1 else None
            for task, mask, drop in turn.tasks(step):
                rows, columns = slice(*task.rows), slice(*task.columns)
                key, value = present[:, :, :, columns]
                found, scale = attend(q[:, :, rows], key, value, mask, task.mask == "causal", drop)
                _merge(mixed[:, :, rows], weight[:, :, rows], found, scale)
            present = coming.wait() if coming else present
        out = mixed.to(q.dtype)
        ctx.turn = turn
        ctx.save_for_backward(q, k, v, out, weight)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, weight = ctx.saved_tensors
        turn: _Turn = ctx.turn
        degree = turn.core.cut.degree
        for_query = torch.zeros(q.shape, dtype=weight.dtype, device=q.device)
        present, gradients = torch.stack((k, v)), None
        for step in range(degree):
            coming = _pass_on(present, turn) if step < degree - 1 else None
            own = torch.zeros(present.shape, dtype=weight.dtype, device=q.device)
            for task, mask, drop in turn.tasks(step):
                rows, columns = slice(*task.rows), slice(*task.columns)
                key, value = present[:, :, :, columns]
                ours, query, mixed, total = (part[:, :, rows] for part in (gradient, q, out, weight))
                found = attend_backward(ours, query, mixed, total, key, value, mask, task.mask == "causal", drop)
                for_query[:, :, rows] += found[0]
                own[0][:, :, columns] += found[1]
                own[1][:, :, columns] += found[2]
            if gradients is not None:
                own += gradients.wait()
            gradients = _pass_on(own, turn)
            present = coming.wait() if coming else present
        assert gradients is not None
        for_key, for_value = gradients.wait().to(k.dtype)
        return for_query.to(q.dtype), for_key, for_value, None


def _merge(mixed: Tensor, weight: Tensor, found: Tensor, scale: Tensor) -> None:
    """Take a block's output and log-sum-exp into those of the blocks before, in place."""
    total = torch.logaddexp(weight, scale)
    mixed.mul_((weight - total).exp().unsqueeze(-1)).add_(found * (scale - total).exp().unsqueeze(-1))
    weight.copy_(total)


@dataclass
class _Coming:
    """A tensor on its way from the rank before; `sent` is kept alive until it has gone."""

    received: Tensor
    sent: Tensor
    work: list[dist.Work]

    def wait(self) -> Tensor:
        """The tensor, once it is here."""
        for work in self.work:
            work.wait()
        return self.received


def _pass_on(x: Tensor, turn: _Turn) -> _Coming:
    """Begin to send a tensor to the next rank and to receive the one before's."""
    group, cut = turn.core.group, turn.core.cut
    received = torch.empty_like(x)
    operations = [
        dist.P2POp(dist.isend, x, group=group, group_peer=(cut.rank + 1) % cut.degree),
        dist.P2POp(dist.irecv, received, group=group, group_peer=(cut.rank - 1) % cut.degree),
    ]
    return _Coming(received, x, dist.batch_isend_irecv(operations))
