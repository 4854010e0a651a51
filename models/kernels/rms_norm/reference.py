"""RMSNorm in plain torch (arXiv 1910.07467).

On CPU its gradient is written out, in fewer passes over memory than autograd's own composition; a compiler finds fewer passes
still and cannot see into what is written out: while one traces, it is given the composition.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dim, in float32; keeps the dtype of x."""
    if x.is_cuda or is_compiling():  # torch has one kernel for it there
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = (length.square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        wide = gradient.to(normal.dtype)
        for_weight = (wide * normal).flatten(0, -2).sum(0).to(weight.dtype)
        wide = wide * weight
        along = torch.linalg.vecdot(wide, normal).unsqueeze(-1) / x.shape[-1]
        return wide.addcmul_(normal, along, value=-1).mul_(scale).to(x.dtype), for_weight, None
