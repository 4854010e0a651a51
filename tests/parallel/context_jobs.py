"""What ranks do in the tests of the context axis."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.core import CoreSpec, PlainCore, take_spans
from models.random import Clock
from parallel import ring
from parallel.config import ParallelConfig
from parallel.context import core_for, cut_for
from parallel.mesh import Mesh
from tests.models.naive_attention import made_up, made_up_prefix
from tests.parallel.jobs import CPU


def attend(
    config: ParallelConfig, specs: list[CoreSpec], groups: int, length: int, dtype: torch.dtype
) -> list[list[Tensor]]:
    """For each spec: output and gradients of query, key and value on all ranks of the context axis, put together."""
    mesh = Mesh(config, CPU)
    found = [_attend(mesh, spec, groups, length, dtype) for spec in specs]
    mesh.close()
    return found


def _attend(mesh: Mesh, spec: CoreSpec, groups: int, length: int, dtype: torch.dtype) -> list[Tensor]:
    cut, clock = cut_for(mesh), Clock(0)
    query, key, value, documents, gradient = made_up(length, 2, spec.heads, groups)
    clock.start(4, documents, made_up_prefix(length, 2))
    mine = cut.spans(length)
    parts = [take_spans(part, mine, 0).detach().to(dtype).requires_grad_() for part in (query, key, value)]
    core = core_for(mesh, spec, clock, spec.heads)
    out = core(*parts, 4, spec.dropout > 0)
    grads = torch.autograd.grad(out, parts, take_spans(gradient, mine, 0).to(dtype))
    whole = []
    for part in (out.detach(), *grads):
        shares = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(cut.degree)]
        dist.all_gather(shares, part.contiguous(), group=mesh.context_group)
        order = [place for rank in range(cut.degree) for span in cut.spans(length, rank) for place in range(*span)]
        whole.append(torch.cat(shares)[torch.tensor(order).argsort()])
    return whole


def with_dropout(spec: CoreSpec, groups: int, length: int) -> list[Tensor]:
    """The same of the plain core in one process."""
    query, key, value, documents, gradient = made_up(length, 2, spec.heads, groups)
    clock = Clock(0)
    clock.start(4, documents, made_up_prefix(length, 2))
    out = PlainCore(spec, clock)(query, key, value, 4, True)
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), gradient)]


def order_of_events(config: ParallelConfig, length: int) -> list[str]:
    """What a ring does in forward and backward, in order: `send`, `attend`, `wait`."""
    events: list[str] = []
    mesh = Mesh(config, CPU)
    kept = (ring.attend, ring.attend_backward, ring._pass_on, ring._Coming.wait)

    def noted(name: str, function):  # type: ignore[no-untyped-def]
        def call(*arguments, **keywords):  # type: ignore[no-untyped-def]
            if events[-1:] != [name]:
                events.append(name)
            return function(*arguments, **keywords)

        return call

    try:
        ring.attend, ring.attend_backward = noted("attend", kept[0]), noted("attend", kept[1])
        ring._pass_on, ring._Coming.wait = noted("send", kept[2]), noted("wait", kept[3])  # type: ignore[method-assign]
        _attend(mesh, CoreSpec(heads=2), 2, length, torch.float32)
    finally:
        ring.attend, ring.attend_backward, ring._pass_on, ring._Coming.wait = kept  # type: ignore[method-assign]
    mesh.close()
    return events
