"""Attention written out position by position in float64: the oracle of every core."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sees(row: int, column: int, *, causal: bool, window: int, documents: list[int] | None) -> bool:
    """The rule in words: nothing later under a causal mask, nothing a window or more away, nothing of another document."""
    if causal and column > row:
        return False
    if window and abs(row - column) >= window:
        return False
    return documents is None or documents[row] == documents[column]


def naive(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, window: int, documents: Tensor | None = None
) -> Tensor:
    """query [S, B, A, D], key and value [S, B, G, D], documents [B, S] -> [S, B, A * D]; query head a has key head a G / A."""
    length, batch, heads, width = query.shape
    share = heads // key.shape[2]
    rows = []
    for b in range(batch):
        parts = None if documents is None else documents[b].tolist()
        for head in range(heads):
            for row in range(length):
                columns = [c for c in range(length) if sees(row, c, causal=causal, window=window, documents=parts)]
                scores = key[columns, b, head // share] @ query[row, b, head] / math.sqrt(width)
                rows.append(scores.softmax(0) @ value[columns, b, head // share])
    return torch.stack(rows).view(batch, heads, length, width).permute(2, 0, 1, 3).flatten(2)


def made_up(length: int, batch: int, heads: int, groups: int, width: int = 4, seed: int = 0) -> tuple[Tensor, ...]:
    """query, key, value float64 with gradients, documents int64 [B, S] of uneven lengths, and a gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(length, batch, count, width, dtype=torch.float64, generator=generator).requires_grad_()
        for count in (heads, groups, groups)
    )
    ends = torch.rand(batch, length, generator=generator) < 0.2
    gradient = torch.randn(length, batch, heads * width, dtype=torch.float64, generator=generator)
    return query, key, value, ends.long().cumsum(1), gradient
