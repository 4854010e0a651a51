"""Cross entropy of logits in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels.cross_entropy.vocabulary import Place, Terms, accumulated_in, combined, joined


def cross_entropy(logits: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """Losses [T] of logits [T, V] and targets int64 [T], differentiable by autograd, and open to a compiler."""
    wide = logits.to(accumulated_in(logits.dtype))
    if terms.plain:
        return F.cross_entropy(wide, targets, reduction="none")
    target = wide.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    total = wide.sum(-1) if terms.label_smoothing else target
    lse = wide.logsumexp(-1)
    lse = lse + (lse - lse)  # not a number where it is infinite, as torch's own cross entropy says
    return joined(lse, target, total, logits.shape[-1], terms)


def losses(logits: Tensor, targets: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """(losses [T], lse [T]) of whole rows."""
    found = statistics(logits, targets, Place(0, logits.shape[-1]), terms)
    return combined(found.unsqueeze(0), logits.shape[-1], terms)


def statistics(logits: Tensor, targets: Tensor, place: Place, terms: Terms) -> Tensor:
    """As `RowFunctions.statistics`."""
    wide = logits.to(accumulated_in(logits.dtype))
    largest = wide.amax(-1)
    shift = largest.masked_fill(largest == -torch.inf, 0)
    powers = (wide - shift.unsqueeze(-1)).exp_().sum(-1)
    local, here = _here(targets, place, logits.shape[-1])
    target = torch.where(here, wide.gather(-1, local.unsqueeze(-1)).squeeze(-1), 0)
    total = wide.sum(-1) if terms.label_smoothing else torch.zeros_like(target)
    return torch.stack((largest, powers, target, total))


def gradient(
    logits: Tensor, targets: Tensor, lse: Tensor, scale: Tensor, place: Place, terms: Terms, out: Tensor
) -> None:
    """As `RowFunctions.gradient`."""
    wide = logits.to(accumulated_in(logits.dtype), copy=True)
    wide.sub_(lse.unsqueeze(-1)).exp_().mul_((scale * (1 + 2 * terms.z_loss * lse)).unsqueeze(-1))
    if terms.label_smoothing:
        wide.sub_((scale * (terms.label_smoothing / place.size)).unsqueeze(-1))
    local, here = _here(targets, place, logits.shape[-1])
    at_target = torch.where(here, scale * (terms.label_smoothing - 1), 0)
    out.copy_(wide.scatter_add_(-1, local.unsqueeze(-1), at_target.unsqueeze(-1)))


def _here(targets: Tensor, place: Place, rows: int) -> tuple[Tensor, Tensor]:
    """(column of each target in this share, or any where it lies elsewhere, whether it lies here)."""
    local = targets - place.first
    here = (local >= 0) & (local < rows)
    return local.clamp(0, rows - 1), here
