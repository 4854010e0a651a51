"""Attention written out position by position in float64: the oracle of every core."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sees(
    row: int,
    column: int,
    *,
    causal: bool,
    window: int,
    documents: list[int] | None,
    prefix: list[bool] | None = None,
) -> bool:
    """The rule in words: nothing later under a causal mask but what is of a prefix, nothing a window or more away, nothing of
    another document."""
    if causal and column > row and not (prefix and prefix[column]):
        return False
    if window and abs(row - column) >= window:
        return False
    return documents is None or documents[row] == documents[column]


def naive(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool,
    window: int,
    documents: Tensor | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """query [S, B, A, D], key and value [S, B, G, D], documents and prefix [B, S] -> [S, B, A * D]; query head a has key head
    a G / A."""
    length, batch, heads, width = query.shape
    share = heads // key.shape[2]
    rows = []
    for b in range(batch):
        given = {
            "documents": None if documents is None else documents[b].tolist(),
            "prefix": None if prefix is None else prefix[b].tolist(),
        }
        for head in range(heads):
            for row in range(length):
                columns = [c for c in range(length) if sees(row, c, causal=causal, window=window, **given)]
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


def made_up_prefix(length: int, batch: int) -> Tensor:
    """bool [B, S]: a first run of each sequence, and single places further on; the last sequence has none."""
    found = torch.rand(batch, length, generator=torch.Generator().manual_seed(5)) < 0.15
    for row in range(batch):
        found[row, : 2 + 3 * row] = True
    found[-1] = False
    return found
