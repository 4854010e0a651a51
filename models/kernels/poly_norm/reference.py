"""PolyNorm in plain torch (PolyCom, arXiv 2411.03884)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

POWERS = 3


def poly_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, mean: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """sum over i = 1, 2, 3 of weight[i - 1] * x^i / sqrt(mean(x^2i) + eps), plus bias; means over the last dim.

    x: [..., F]; weight: [3]; bias: [1]. Computed in float32, or in the dtype of x if that is wider; returned in the dtype of x.
    mean: of the last dim, [..., F] -> [..., 1], where F is only a share of it.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    powers = [wide, wide * wide, wide * wide * wide]
    found = bias
    for factor, power in zip(weight, powers, strict=True):
        square = power * power
        level = square.mean(-1, keepdim=True) if mean is None else mean(square)
        found = found + factor * (power * (level + eps).rsqrt())
    return found.to(x.dtype)
