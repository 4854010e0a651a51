"""Where the copies of tokens stand that experts see: choices sorted by expert, each expert's rows a multiple of a number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.moe.routing import tally


@dataclass(frozen=True)
class Order:
    """The K choices of each of N tokens, ordered by expert: row i of what experts see is a copy of a token, or zero.

    rows: int64 [R], which choice (token x K + k) stands in each row, N x K where none does. place: int64 [N x K], the row of
    each choice, R of a dropped one. counts: int64 [E], rows of each expert, those of zeros with them. dropped, filled: whether
    there may be choices without a row, and rows without a choice.
    """

    rows: Tensor
    place: Tensor
    counts: Tensor
    top_k: int
    dropped: bool
    filled: bool


def order_of(chosen: Tensor, within: Tensor | None, experts: int, multiple: int = 1) -> Order:
    """chosen: int64 [..., K], experts of each token; within: bool, which choices are kept, or None for all. multiple: of which
    each expert's rows are a number, 32 for products of MX blocks along the tokens.

    How many rows of zeros that takes is known on the device alone, which nobody waits for: there are as many as there could be,
    multiple - 1 for each expert, and what is too many the last expert gets.
    """
    flat = chosen.flatten()
    if within is not None:
        flat = flat.masked_fill(~within.flatten(), experts)  # dropped ones come last, and are left out
    counts = tally(flat, experts + 1)
    order = flat.argsort(stable=True)
    counts = counts[:experts]
    kept = flat.numel() if within is None else int(counts.sum())
    place = torch.empty_like(order)
    dropped = kept < flat.numel()
    if multiple == 1:
        place[order] = torch.arange(order.numel(), device=order.device).clamp_(max=kept)
        return Order(order[:kept], place, counts, chosen.shape[-1], dropped, False)
    total = -(-(kept + experts * (multiple - 1)) // multiple) * multiple
    held = (counts + multiple - 1) // multiple * multiple
    held[-1] += total - held.sum()
    shift = (held.cumsum(0) - held) - (counts.cumsum(0) - counts)
    by_expert = flat[order[:kept]]
    place.fill_(total)
    place[order[:kept]] = torch.arange(kept, device=order.device) + shift[by_expert]
    rows = torch.full((total + 1,), flat.numel(), dtype=torch.int64, device=order.device)
    rows[place] = torch.arange(flat.numel(), device=order.device)  # dropped ones all in the row behind the last
    return Order(rows[:total], place, held, chosen.shape[-1], dropped, True)
