"""Linear maps, embeddings and heads of one process, and the losses of a head. A layer's product may be a quantised one
(`models.products`), which its factory puts in the place of the plain one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.kernels.cross_entropy import cross_entropy as kernel_cross_entropy
from models.kernels.cross_entropy.vocabulary import VocabAxis
from models.kernels.linear_cross_entropy import linear_cross_entropy
from models.loss import PLAIN, Terms
from models.parameters import declare
from models.products import Product, plain_product
from models.random import Asked


class Linear(nn.Module):
    """Affine map of the last dim; weight [outputs, inputs]."""

    product: Product = staticmethod(plain_product)

    def __init__(self, inputs: int, outputs: int, *, bias: bool, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        declare(self.weight, std=std)
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None
        if self.bias is not None:
            declare(self.bias)

    def forward(self, x: Tensor, first_sample: int | Tensor = 0) -> Tensor:
        return self.product(x, self.weight, self.bias, first_sample)


class Embedding(nn.Module):
    """Token embedding: tokens [B, S] int64 -> [S, B, H]."""

    def __init__(self, rows: int, hidden: int, *, std: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, hidden, dtype=dtype))
        declare(self.weight, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens.t(), self.weight)


class Head(nn.Module):
    """Output projection without bias; with `tied` it owns no weight and is handed the embedding's."""

    product: Product = staticmethod(plain_product)

    def __init__(self, hidden: int, rows: int, *, std: float, tied: bool, dtype: torch.dtype, kernels: str) -> None:
        super().__init__()
        self._kernels = kernels
        self.weight = None if tied else nn.Parameter(torch.empty(rows, hidden, dtype=dtype))
        if self.weight is not None:
            declare(self.weight, std=std)

    def forward(
        self, x: Tensor, weight: Tensor | None = None, asked: Asked | None = None, first_sample: int | Tensor = 0
    ) -> Tensor:
        weight = self.weight if weight is None else weight
        assert weight is not None, "a tied head is handed the embedding's weight"
        if asked is not None:
            return head_losses(x, weight, asked, kernels=self._kernels)
        return self.product(x, weight, None, first_sample)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    terms: Terms = PLAIN,
    *,
    in_place: bool = False,
    axis: VocabAxis | None = None,
    kernels: str = "auto",
) -> Tensor:
    """Cross entropy in float32 without reduction: logits [S, B, share of V], targets [S, B] int64 -> [S, B], nats."""
    options = {"z_loss": terms.z_loss, "label_smoothing": terms.label_smoothing, "axis": axis}
    return kernel_cross_entropy(logits, targets, in_place=in_place, kernels=kernels, **options)  # type: ignore[arg-type]


def head_losses(
    x: Tensor, weight: Tensor, asked: Asked, *, axis: VocabAxis | None = None, kernels: str = "auto"
) -> Tensor:
    """Losses float32 [S, B] of x [S, B, H] and the head's rows [share of V, H]."""
    terms, weights = asked.terms, None if asked.weights is None else asked.weights.t()
    options = {"z_loss": terms.z_loss, "label_smoothing": terms.label_smoothing, "axis": axis}
    return linear_cross_entropy(x, weight, asked.targets.t(), weights=weights, kernels=kernels, **options)  # type: ignore[arg-type]
