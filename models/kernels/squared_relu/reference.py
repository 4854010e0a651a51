"""Squared ReLU in plain torch (Primer, arXiv 2109.08668)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)², elementwise."""
    return F.relu(x).square()
