"""Attention of packed documents one by one, so that what the document mask hides is never computed.

On GPU in half precision torch's variable-length kernel (FlashAttention, arXiv 2205.14135) takes all documents of a micro-batch
at once. Elsewhere, and where a prefix is seen from before it, documents are attended to in turn by the blocks of
`models.attention_block`, which is the kernel's counterpart. Work is the sum of the squares of documents' lengths instead of the
square of the sequence's.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.attention_block import attend, attend_backward
from models.core import AttentionCore, CoreSpec, PlainCore, mask_for, parts_of
from models.random import Clock


def core_of(spec: CoreSpec, clock: Clock, first_head: int = 0) -> AttentionCore:
    """The core for whole sequences that a specification asks for. first_head: global index of the first query head here."""
    return VarlenCore(spec, clock) if spec.varlen else PlainCore(spec, clock, first_head)


class Piece(NamedTuple):
    """Tokens [start, stop) of a row of the micro-batch: one document. mask: bool [1, 1, L, L] where neither all nor causal."""

    row: int
    start: int
    stop: int
    causal: bool
    mask: Tensor | None


class VarlenCore:
    """Attention within documents of whole sequences."""

    def __init__(self, spec: CoreSpec, clock: Clock) -> None:
        assert spec.documents and not spec.dropout, "checked where the model is"
        self.spec, self.clock = spec, clock

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int, training: bool) -> Tensor:
        length, sequences = query.shape[:2]
        borders = self.clock.borders(first_sample, sequences)
        prefix = parts_of(self.spec, self.clock, first_sample, sequences)[1]
        half = query.dtype in (torch.bfloat16, torch.float16)
        if query.is_cuda and half and (prefix is None or not self.spec.causal):
            return self._in_one_kernel(query, key, value, borders)
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        mixed = _ByDocument.apply(q, k, v, self._pieces(borders, prefix, length, q.device))
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _pieces(
        self, borders: list[list[int]], prefix: Tensor | None, length: int, device: torch.device
    ) -> list[Piece]:
        spec, found = self.spec, []
        for row, starts in enumerate(borders):
            marks = None if prefix is None or not spec.causal else prefix[row : row + 1]
            for start, stop in zip(starts, [*starts[1:], length], strict=True):
                marked = marks is not None and bool(marks[0, start + 1 : stop].any())
                mask = None
                if marked or 0 < spec.window < stop - start:
                    here = ((start, stop),)
                    mask = mask_for(spec, here, here, None, device, marks if marked else None)
                    mask = mask[None, None] if mask.dim() == 2 else mask
                found.append(Piece(row, start, stop, spec.causal, mask))
        return found

    def _in_one_kernel(self, query: Tensor, key: Tensor, value: Tensor, borders: list[list[int]]) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        length, sequences = query.shape[:2]
        starts = [row * length + start for row, found in enumerate(borders) for start in found] + [sequences * length]
        cumulative = torch.tensor(starts, dtype=torch.int32, device=query.device)
        longest = max(stop - start for start, stop in itertools.pairwise(starts))
        behind = self.spec.window - 1 if self.spec.window else -1
        q, k, v = (part.transpose(0, 1).flatten(0, 1) for part in (query, key, value))
        mixed = varlen_attn(
            q,
            k,
            v,
            cumulative,
            cumulative,
            longest,
            longest,
            window_size=(behind, 0 if self.spec.causal else behind),
            enable_gqa=q.shape[1] != k.shape[1],
        )
        return mixed.unflatten(0, (sequences, length)).transpose(0, 1).flatten(2)


class _ByDocument(torch.autograd.Function):
    """q [B, A, S, D], k and v [B, G, S, D] -> [B, A, S, D]; pieces cover every row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: list[Piece]) -> Tensor:
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        weights = []
        for piece in pieces:
            ours, key, value = (_take(part, piece) for part in (q, k, v))
            mixed, weight = attend(ours, key, value, piece.mask, piece.causal, None)
            _take(out, piece).copy_(mixed)
            weights.append(weight)
        ctx.pieces = pieces
        ctx.save_for_backward(q, k, v, out, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *weights = ctx.saved_tensors
        found = [torch.empty(part.shape, dtype=part.dtype, device=part.device) for part in (q, k, v)]
        for piece, weight in zip(ctx.pieces, weights, strict=True):
            ours, query, mixed, key, value = (_take(part, piece) for part in (gradient, q, out, k, v))
            gradients = attend_backward(ours, query, mixed, weight, key, value, piece.mask, piece.causal, None)
            for whole, part in zip(found, gradients, strict=True):
                _take(whole, piece).copy_(part)
        return (*found, None)  # type: ignore[return-value]


def _take(x: Tensor, piece: Piece) -> Tensor:
    return x[piece.row : piece.row + 1, :, piece.start : piece.stop]
