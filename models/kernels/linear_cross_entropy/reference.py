"""The losses of a head in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from models.kernels.cross_entropy import reference
from models.kernels.cross_entropy.reference import gradient as gradient
from models.kernels.cross_entropy.reference import losses as losses
from models.kernels.cross_entropy.reference import statistics as statistics
from models.kernels.cross_entropy.vocabulary import Place, Terms


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, terms: Terms) -> Tensor:
    """Losses [T] of x [T, H], weight [V, H] and targets int64 [T], logits whole: the definition, and what a compiler gets."""
    return reference.cross_entropy(F.linear(x, weight), targets, terms)


def both(logits: Tensor, targets: Tensor, scale: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """As `HeadFunctions.both`."""
    found, lse = losses(logits, targets, terms)
    gradient(logits, targets, lse, scale, Place(0, logits.shape[-1]), terms, logits)
    return found, lse
