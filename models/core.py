"""Attention cores: what lies between the query-key-value projection and the output projection.

A core is given by the factory of layers, since where the sequence is cut it needs other ranks. Who sees whom is told by a
`CoreSpec` and global positions alone, so every core masks alike.

Shapes: S sequence, B batch, A query heads, G key-value heads, D head size; Q and K the rows and columns of a mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.random import Clock, drop, offsets

Span = tuple[int, int]
"""Global positions [start, stop)."""
Spans = tuple[Span, ...]
AttentionCore = Callable[[Tensor, Tensor, Tensor, int, bool], Tensor]
"""(query [S, B, A, D], key and value [S, B, G, D], first sample, whether dropout acts) -> [S, B, A * D]."""


@dataclass(frozen=True)
class CoreSpec:
    """What is computed, the same at every layout. documents: attention does not cross them; prefix: what is marked as one is
    seen from before it too; varlen: documents are computed one by one; heads: query heads of the whole model; dropout_key:
    stream of its masks; start: where the rows begin in the sequences whose documents the clock knows (a decoder's come after
    its encoder's)."""

    causal: bool = True
    window: int = 0
    documents: bool = False
    prefix: bool = False
    varlen: bool = False
    dropout: float = 0.0
    dropout_key: int | Tensor = 0
    heads: int = 1
    start: int = 0

    def empty(self, rows: Span, columns: Span, *, marked: bool = False) -> bool:
        """Whether no row sees any column, whatever the documents are. marked: whether some column may be of a prefix."""
        ahead, behind = columns[0] - (rows[1] - 1), rows[0] - (columns[1] - 1)
        hidden = self.causal and not marked and ahead > 0
        return hidden or (self.window > 0 and max(ahead, behind) >= self.window)

    def full(self, rows: Span, columns: Span) -> bool:
        """Whether every row sees every column of its document."""
        ahead, behind = columns[1] - 1 - rows[0], rows[1] - 1 - columns[0]
        return not (self.causal and ahead > 0) and (self.window == 0 or max(ahead, behind) < self.window)


def length_of(spans: Spans) -> int:
    """Positions in all spans."""
    return sum(stop - start for start, stop in spans)


def slice_spans(spans: Spans, start: int, stop: int) -> Spans:
    """Rows [start, stop) of the rows that the spans make, one after another."""
    found, before = [], 0
    for first, last in spans:
        begin, end = max(start - before, 0), min(stop - before, last - first)
        if begin < end:
            found.append((first + begin, first + end))
        before += last - first
    return tuple(found)


def positions_of(spans: Spans, device: torch.device) -> Tensor:
    """The positions as int64 [S]."""
    return torch.cat([torch.arange(start, stop, device=device) for start, stop in spans])


def take_spans(x: Tensor, spans: Spans, dim: int) -> Tensor:
    """The spans of a tensor whose `dim` is the whole sequence."""
    if len(spans) == 1:
        return x.narrow(dim, spans[0][0], spans[0][1] - spans[0][0])
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in spans], dim=dim)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def visible(causal: bool, window: int, rows: Spans, columns: Spans, device: torch.device) -> Tensor:
    """bool [Q, K]: whether a row sees a column. window: positions on each side that is seen, the own one among them."""
    distance = positions_of(rows, device)[:, None] - positions_of(columns, device)
    seen = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return seen & (distance.abs() < window) if window else seen


def mask_for(
    spec: CoreSpec,
    rows: Spans,
    columns: Spans,
    documents: Tensor | None,
    device: torch.device,
    prefix: Tensor | None = None,
) -> Tensor:
    """bool [Q, K], or [B, 1, Q, K] where documents int64 [B, S] part them or a prefix bool [B, S] is seen from everywhere."""
    seen = visible(spec.causal, spec.window, rows, columns, device)
    if documents is None and prefix is None:
        return seen
    seen = seen[None]
    if prefix is not None and spec.causal:
        seen = seen | (take_spans(prefix, columns, 1)[:, None, :] & visible(False, spec.window, rows, columns, device))
    if documents is not None:
        ours, theirs = take_spans(documents, rows, 1), take_spans(documents, columns, 1)
        seen = seen & (ours[:, :, None] == theirs[:, None, :])
    return seen[:, None]


def drop_weights(
    weights: Tensor, spec: CoreSpec, first_sample: int, first_head: int, rows: Spans, columns: Spans, length: int
) -> Tensor:
    """Dropout of attention weights [B, A, Q, K], a function of (sample, head, row, column) in sequences of `length`."""
    batch, heads = weights.shape[:2]
    shape = (batch + 1, spec.heads, length, length)
    index = torch.cat(
        [
            torch.cat(
                [
                    offsets(
                        shape,
                        (first_sample, first_head, row[0], column[0]),
                        (batch, heads, row[1] - row[0], column[1] - column[0]),
                        weights.device,
                    )
                    for column in columns
                ],
                dim=3,
            )
            for row in rows
        ],
        dim=2,
    )
    return drop(weights, spec.dropout_key, spec.dropout, index)


def document_numbers(tokens: Tensor, end: int) -> Tensor:
    """int64 [B, S]: how many documents of its row ended before each token [B, S]; an end belongs to what it ends."""
    ends = (tokens == end).long()
    return ends.cumsum(1) - ends


def parts_of(spec: CoreSpec, clock: Clock, first_sample: int, sequences: int) -> tuple[Tensor | None, Tensor | None]:
    """Documents int64 [B, S] and prefixes bool [B, S] of some sequences, where the model's attention asks for them; documents
    from `spec.start` on."""
    documents = clock.documents(first_sample, sequences)[:, spec.start :] if spec.documents else None
    return documents, clock.prefix(first_sample, sequences) if spec.prefix else None


class PlainCore:
    """Attention over whole sequences. first_head: global index of the first query head here."""

    def __init__(self, spec: CoreSpec, clock: Clock, first_head: int = 0) -> None:
        self.spec, self.clock, self.first_head = spec, clock, first_head

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, first_sample: int, training: bool) -> Tensor:
        spec = self.spec
        q, k, v = (part.permute(1, 2, 0, 3) for part in (query, key, value))
        grouped = q.shape[1] != k.shape[1]
        if spec.dropout > 0 and training:
            mixed = self._with_dropout(q, k, v, first_sample)
        elif not self._masked(q, first_sample):
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=spec.causal, enable_gqa=grouped)
        else:
            mask = self._mask(q, first_sample)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        return mixed.permute(2, 0, 1, 3).flatten(2)

    def _masked(self, q: Tensor, first_sample: int) -> bool:
        """Whether more is hidden, or less, than causality says."""
        spec = self.spec
        windowed = 0 < spec.window < q.shape[2]
        return windowed or any(part is not None for part in parts_of(spec, self.clock, first_sample, q.shape[0]))

    def _mask(self, q: Tensor, first_sample: int) -> Tensor:
        whole = ((0, q.shape[2]),)
        documents, prefix = parts_of(self.spec, self.clock, first_sample, q.shape[0])
        return mask_for(self.spec, whole, whole, documents, q.device, prefix)

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, first_sample: int) -> Tensor:
        """The core written out, since a fused kernel would draw its own mask: q [B, A, S, D] -> [B, A, S, D]."""
        heads, length, width = q.shape[1:]
        k, v = (part.repeat_interleave(heads // part.shape[1], dim=1) for part in (k, v))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(width)
        weights = scores.masked_fill(~self._mask(q, first_sample), float("-inf")).softmax(-1)
        whole = ((0, length),)
        weights = drop_weights(weights, self.spec, first_sample, self.first_head, whole, whole, length)
        return weights.to(v.dtype) @ v
