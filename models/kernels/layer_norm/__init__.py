"""LayerNorm over the last dim, alone or of a residual stream that a branch is added to."""

from __future__ import annotations

from torch import Tensor

from models.formats import MXTensor
from models.kernels import elsewhere
from models.kernels.layer_norm import reference
from models.kernels.mx_output import check_output, put_together, reference_output
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
    return row_norm(x, None, weight, bias, eps, True, "", "")[0]


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kernels: str = "auto"
) -> tuple[Tensor, Tensor]:
    """(normed, stream) of stream = x + residual, both of the shape and dtype of x; gradients of both reach x and residual."""
    if KERNEL.choose(kernels, x) == "triton":
        return row_norm(x, residual, weight, bias, eps, True, "", "")[:2]
    stream = x + residual
    return layer_norm(stream, weight, bias, eps, kernels), stream


def layer_norm_mx(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    format: str,
    scale: str = "floor",
    residual: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor, MXTensor]:
    """(normed, stream, normed in MX), the last bit for bit `quantize(normed, format, -1, scale)`; stream is x + residual, or x.

    format: of `models.formats.names.FORMATS` but nvfp4; scale: of `models.formats.scales.MODES`; N a multiple of 32. Gradients
    reach x by the first two.
    """
    element = check_output(format, scale, x.shape[-1], x.dtype)
    if KERNEL.choose(kernels, x) == "triton":
        y, stream, _, _, elements, scales = row_norm(x, residual, weight, bias, eps, True, element, scale)
        return y, x if residual is None else stream, put_together(elements, scales, format)
    stream = x if residual is None else x + residual
    y = layer_norm(stream, weight, bias, eps, kernels)
    return y, stream, reference_output(y, format, scale)
