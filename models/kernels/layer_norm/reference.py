"""LayerNorm in plain torch (arXiv 1607.06450), which has one kernel for it on every device, with float32 sums."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim; keeps the dtype of x."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)
