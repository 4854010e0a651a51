"""PolyNorm, the activation that adds up normed powers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats import MXTensor
from models.kernels import elsewhere
from models.kernels.mx_output import check_output, empty_output, put_together, reference_output
from models.kernels.poly_norm import reference
from models.kernels.registry import Kernel

KERNEL = Kernel("poly_norm", serves={"liger": elsewhere.on_gpus}, elsewhere=("liger",), compiled="reference")


def poly_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, kernels: str = "auto") -> Tensor:
    """sum over i = 1, 2, 3 of weight[i - 1] * x^i / sqrt(mean(x^2i) + eps), plus bias; means over the last dim
    (arXiv 2411.03884).

    x: [..., F], any strides; weight: [3]; bias: [1]. Computed in float32 (float64 for float64), returned in the dtype of x.
    kernels: of `registry.CHOICES`.
    """
    if weight.shape != (reference.POWERS,) or bias.shape != (1,):
        raise ModelError(
            f"PolyNorm with weights {tuple(weight.shape)} and bias {tuple(bias.shape)}: takes (3,) and (1,)"
        )
    chosen = KERNEL.choose(kernels, x)
    if chosen == "reference":
        return reference.poly_norm(x, weight, bias, eps)
    if chosen in elsewhere.PACKAGES:
        return elsewhere.poly_norm(x, weight, bias, eps)
    return poly_norm_operator(x, weight, bias, eps, "", "")[0]


def poly_norm_mx(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    format: str,
    scale: str = "floor",
    kernels: str = "auto",
) -> tuple[Tensor, MXTensor]:
    """(`poly_norm` of x [..., F], the same in MX), the last bit for bit `quantize` of the first.

    format: of `models.formats.names.FORMATS` but nvfp4, in blocks along the last dim; scale: of `models.formats.scales.MODES`;
    F a multiple of 32. Gradients go by the first.
    """
    _check(weight, bias)
    element = check_output(format, scale, x.shape[-1], x.dtype)
    if KERNEL.choose(kernels, x) == "triton":
        y, _, elements, scales = poly_norm_operator(x, weight, bias, eps, element, scale)
        return y, put_together(elements, scales, format)
    y = poly_norm(x, weight, bias, eps, kernels)
    return y, reference_output(y, format, scale)


def _check(weight: Tensor, bias: Tensor) -> None:
    if weight.shape != (reference.POWERS,) or bias.shape != (1,):
        raise ModelError(
            f"PolyNorm with weights {tuple(weight.shape)} and bias {tuple(bias.shape)}: takes (3,) and (1,)"
        )


@torch.library.custom_op(
    "triaxis::poly_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, float eps, str element, str mode) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
)
def poly_norm_operator(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, element: str, mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, factors, elements, scales): y contiguous like x [..., F]; factors [rows, 3], float32 (float64 for float64), of each
    power; y's MX elements and scales, empty where `element` is."""
    from models.kernels.poly_norm.triton import poly_norm

    return poly_norm(x, weight, bias, eps, element, mode)


@poly_norm_operator.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, element: str, mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    factors = y.new_empty(y.numel() // y.shape[-1], 3, dtype=torch.promote_types(x.dtype, torch.float32))
    return y, factors, *empty_output(y, element)


@torch.library.custom_op(
    "triaxis::poly_norm_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor x, Tensor weight, Tensor factors) -> (Tensor, Tensor, Tensor)",
)
def poly_norm_backward(upstream: Tensor, x: Tensor, weight: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, the bias's in the dtype of the weight."""
    from models.kernels.poly_norm.triton import poly_norm_backward

    return poly_norm_backward(upstream, x, weight, factors)


@poly_norm_backward.register_fake
def _(upstream: Tensor, x: Tensor, weight: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(1)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, bias, *_ = inputs
    ctx.bias_type = bias.dtype
    ctx.save_for_backward(x, weight, output[1])


def _gradient(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    for_x, for_weight, for_bias = torch.ops.triaxis.poly_norm_backward(upstream, *ctx.saved_tensors)
    return for_x, for_weight, for_bias.to(ctx.bias_type), None, None, None


poly_norm_operator.register_autograd(_gradient, setup_context=_keep)
