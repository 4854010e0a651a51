"""What cross entropy is told beside logits: terms of the loss, and where this rank's logits stand in the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.loss import Terms as Terms


class VocabAxis(Protocol):
    """Processes that have a share of the vocabulary each; every one is told the same targets."""

    first: int
    """This rank's first row in the vocabulary."""
    size: int
    """Rows of the whole vocabulary."""

    def gather(self, x: Tensor) -> Tensor:
        """A small float tensor -> [processes, *x.shape], on each of them the same."""


@dataclass(frozen=True)
class Place:
    """first: where these logits begin in the vocabulary; size: of the whole vocabulary."""

    first: int
    size: int

    @staticmethod
    def of(axis: VocabAxis | None, rows: int) -> Place:
        """Of a share of `rows`."""
        return Place(0, rows) if axis is None else Place(axis.first, axis.size)


class RowFunctions(Protocol):
    """What `reference.py` and `triton.py` compute, row by row: logits [T, V'], this rank's share; targets int64 [T], anywhere
    in the vocabulary. What comes out is float32, of float64 logits float64."""

    def losses(self, logits: Tensor, targets: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
        """(losses [T], lse [T]) of whole rows."""

    def statistics(self, logits: Tensor, targets: Tensor, place: Place, terms: Terms) -> Tensor:
        """[4, T] of a share: the largest logit, the sum of exp(logit - largest), the target's logit or 0 where it is not here,
        the sum of logits or 0 where nothing is smoothed."""

    def gradient(
        self, logits: Tensor, targets: Tensor, lse: Tensor, scale: Tensor, place: Place, terms: Terms, out: Tensor
    ) -> None:
        """The losses' gradient times `scale` [T], written to `out` [T, V'], which may be the logits."""


def accumulated_in(dtype: torch.dtype) -> torch.dtype:
    """Type of sums over numbers of a type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def combined(shares: Tensor, size: int, terms: Terms) -> tuple[Tensor, Tensor]:
    """Statistics [ranks, 4, T] -> (losses [T], lse [T])."""
    largest, powers, target, total = shares.unbind(1)
    highest = largest.amax(0)
    shift = highest.masked_fill(highest == -torch.inf, 0)  # else rows without a finite logit on one rank were NaN
    lse = shift + (powers * (largest - shift).exp()).sum(0).log()
    return joined(lse, target.sum(0), total.sum(0), size, terms), lse


def joined(lse: Tensor, target: Tensor, total: Tensor, size: int, terms: Terms) -> Tensor:
    """The losses from their parts."""
    losses = lse - target
    if terms.label_smoothing:
        losses = lse - (1 - terms.label_smoothing) * target - terms.label_smoothing / size * total
    return losses + terms.z_loss * lse.square() if terms.z_loss else losses


def measured(
    rows: RowFunctions, logits: Tensor, targets: Tensor, place: Place, terms: Terms, axis: VocabAxis | None
) -> tuple[Tensor, Tensor]:
    """(losses [T], lse [T]) of logits [T, V'] that lie here or over an axis: one collective of 16 bytes a token."""
    if axis is None:
        return rows.losses(logits, targets, terms)
    return combined(axis.gather(rows.statistics(logits, targets, place, terms)), place.size, terms)
