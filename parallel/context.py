"""The context axis: where sequences are cut, the factory of layers that are cut nowhere else, and Ulysses.

Ring attention wants every rank to have as much to compute under a causal mask, so its cut is a zigzag: of 2C chunks rank i
holds chunks i and 2C - 1 - i (Llama 3, arXiv 2407.21783, section 3.3.2). Ulysses (arXiv 2309.14509) sees whole sequences and
is cut plainly: rank i holds chunk i of C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from models.config import ModelConfig
from models.core import AttentionCore, CoreSpec, Spans, document_numbers, positions_of, take_spans
from models.layers import PlainLayers
from models.precision import UNQUANTISED, ProductsConfig
from models.products import Axes
from models.random import Asked, Clock
from models.varlen import core_of
from parallel.engines.base import Batch
from parallel.mesh import Mesh
from parallel.products import MeshAxes
from parallel.ring import RingCore
from parallel.transfer import sent


@dataclass(frozen=True)
class SequenceCut:
    """Which positions each rank of the context axis holds."""

    degree: int
    rank: int
    zigzag: bool

    def spans(self, length: int, rank: int | None = None) -> Spans:
        """Positions of a rank, this one if none is named, of a sequence of `length`."""
        rank = self.rank if rank is None else rank
        if self.degree == 1 or not self.zigzag:
            size = length // self.degree
            return ((rank * size, (rank + 1) * size),)
        size, last = length // (2 * self.degree), 2 * self.degree - 1 - rank
        return ((rank * size, (rank + 1) * size), (last * size, (last + 1) * size))

    def take(self, x: Tensor) -> Tensor:
        """[R, S] -> this rank's positions [R, S/C]."""
        return x if self.degree == 1 else take_spans(x, self.spans(x.shape[1]), 1)

    def batch(self, batch: Batch) -> Batch:
        """This rank's positions of a batch; documents and prefixes are the clock's business."""
        inputs, targets, weights = (self.take(part) for part in (batch.inputs, batch.targets, batch.weights))
        return Batch(inputs, targets, weights, batch.first_sample)

    def find(self, position: int, length: int) -> tuple[int, int]:
        """(rank, row on that rank) of a position of a sequence of `length`."""
        for rank in range(self.degree):
            before = 0
            for start, stop in self.spans(length, rank):
                if start <= position < stop:
                    return rank, before + position - start
                before += stop - start
        raise AssertionError((position, length))


def cut_for(mesh: Mesh) -> SequenceCut:
    """How a layout cuts sequences."""
    return SequenceCut(mesh.config.context, mesh.place.context, mesh.config.context_method == "ring")


def documents_of(model: ModelConfig, tokens: Tensor, device: torch.device) -> Tensor | None:
    """Document numbers of uncut sequences [R, S], where the model's attention asks for them: what stands between ends, and of
    an encoder-decoder all of a row."""
    if model.encoder_layers:
        return torch.zeros(tokens.shape, dtype=torch.int64, device=device)
    return document_numbers(sent(tokens, device), model.document_end) if model.document_mask else None


def start_clock(
    clock: Clock, model: ModelConfig, batch: Batch, device: torch.device, asked: Asked | None = None
) -> None:
    """Tell the clock of a batch whose sequences are uncut: its samples, what the model's attention asks for of documents (the
    batch's own, or what ends parted) and prefixes, and what a head that gives losses is asked."""
    documents = documents_of(model, batch.inputs, device)
    if documents is not None and batch.documents is not None:
        documents = sent(batch.documents, device)
    prefix = sent(batch.prefix, device) if model.prefix_mask and batch.prefix is not None else None
    clock.start(batch.first_sample, documents, prefix, asked)


def core_for(mesh: Mesh, spec: CoreSpec, clock: Clock, heads: int) -> AttentionCore:
    """The attention core of a layout, for `heads` query heads of this tensor rank."""
    first_head = mesh.place.tensor * heads
    if mesh.config.context == 1:
        return core_of(spec, clock, first_head)
    if mesh.config.context_method == "ring":
        return RingCore(spec, clock, first_head, cut_for(mesh), mesh.context_group)
    return UlyssesCore(
        spec, clock, first_head + mesh.place.context * (heads // mesh.config.context), mesh.context_group
    )


class AcrossContext:
    """What routers ask of the context axis: mixture layers judge a micro-batch's sequences whole."""

    _mesh: Mesh
    _cut: SequenceCut

    def whole_sequence(self, x: Tensor) -> Tensor:
        if self._cut.degree == 1:
            return x
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self._cut.degree)]
        dist.all_gather(parts, x.contiguous(), group=self._mesh.context_group)
        length = x.shape[0] * self._cut.degree
        whole = x.new_empty(length, *x.shape[1:])
        for rank, part in enumerate(parts):
            whole[positions_of(self._cut.spans(length, rank), x.device)] = part
        return whole

    def own_positions(self, x: Tensor) -> Tensor:
        return x if self._cut.degree == 1 else take_spans(x, self._cut.spans(x.shape[0]), 0)

    def count_over_context(self, counts: Tensor) -> Tensor:
        if self._cut.degree > 1:
            dist.all_reduce(counts, group=self._mesh.context_group)
        return counts


class ContextLayers(AcrossContext, PlainLayers):
    """The factory where only the context axis cuts sequences: layers are whole, positions and attention are not."""

    def __init__(
        self,
        mesh: Mesh,
        dtype: torch.dtype,
        clock: Clock,
        kernels: str = "auto",
        products: ProductsConfig = UNQUANTISED,
    ) -> None:
        super().__init__(dtype, clock, kernels, products)
        self._mesh, self._cut = mesh, cut_for(mesh)

    def spans(self, length: int) -> Spans:
        return self._cut.spans(self.uncut(length))

    def uncut(self, length: int) -> int:
        return length * self._cut.degree

    def product_axes(self, cut: str) -> Axes:
        return MeshAxes(self._mesh, "none", self.spans)

    def attention_core(self, spec: CoreSpec, heads: int) -> AttentionCore:
        return core_for(self._mesh, spec, self.clock, heads)


class UlyssesCore:
    """Whole sequences and a share of the heads inside, a share of the sequence and all heads outside."""

    def __init__(self, spec: CoreSpec, clock: Clock, first_head: int, group: dist.ProcessGroup) -> None:
        self.inner, self.group = core_of(spec, clock, first_head), group

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int, training: bool) -> Tensor:
        """query [S/C, B, A, D], key and value [S/C, B, G, D] -> [S/C, B, A * D]."""
        degree = self.group.size()
        if key.shape[2] < degree:  # every rank needs a key-value head: of several ranks the same
            key, value = (part.repeat_interleave(degree // part.shape[2], dim=2) for part in (key, value))
        shares = [part.unflatten(2, (degree, -1)) for part in (query, key, value)]
        sizes = [share.shape[3] for share in shares]
        # [S/C, B, C, heads, D] -> [C, S/C, B, heads, D], of which rank i gets the i-th and gives its own sequence
        sent = torch.cat(shares, dim=3).permute(2, 0, 1, 3, 4).contiguous()
        whole = _Exchange.apply(sent, self.group).flatten(0, 1)
        query, key, value = whole.split(sizes, dim=2)
        mixed = self.inner(query, key, value, first_sample, training)
        back = _Exchange.apply(mixed.unflatten(0, (degree, -1)).contiguous(), self.group)
        return back.permute(1, 2, 0, 3).flatten(2)


class _Exchange(torch.autograd.Function):
    """Part i of dim 0 goes to rank i, and part i of what comes is rank i's; its gradient goes the same way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        found = torch.empty_like(x)
        dist.all_to_all_single(found, x, group=group)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        found = torch.empty_like(gradient, memory_format=torch.contiguous_format)
        dist.all_to_all_single(found, gradient.contiguous(), group=ctx.group)
        return found, None
