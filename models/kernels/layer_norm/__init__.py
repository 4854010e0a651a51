"""LayerNorm over the last dim, alone or of a residual stream that a branch is added to."""

from __future__ import annotations

from torch import Tensor

from models.kernels import elsewhere
from models.kernels.layer_norm import reference
from models.kernels.registry import Kernel
from models.kernels.row_norm import refuses, row_norm

KERNEL = Kernel(
    "layer_norm",
    serves={"triton": refuses, "liger": elsewhere.on_gpus, "apex": elsewhere.on_gpus},
    elsewhere=("liger", "apex"),
    compiled="reference",
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kernels: str = "auto") -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim (arXiv 1607.06450).

    x: [..., N], any strides; weight, bias: [N]. Computed in float32 (float64 for float64), returned in the dtype of x. kernels:
    of `registry.CHOICES`.
    """
    chosen = KERNEL.choose(kernels, x)
    if chosen == "reference":
        return reference.layer_norm(x, weight, bias, eps)
    if chosen in elsewhere.PACKAGES:
        return elsewhere.layer_norm(chosen, x, weight, bias, eps)
    return row_norm(x, None, weight, bias, eps, True)[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kernels: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(normed, stream) of stream = x + residual, both of the shape and dtype of x; gradients of both reach x and residual."""
    if KERNEL.choose(kernels, x) == "triton":
        return row_norm(x, residual, weight, bias, eps, True)[:2]
    stream = x + residual
    return layer_norm(stream, weight, bias, eps, kernels), stream
