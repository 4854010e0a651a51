"""Squared ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.formats import MXTensor
from models.kernels import elsewhere
from models.kernels.mx_output import check_output, empty_output, put_together, reference_output
from models.kernels.registry import Kernel
from models.kernels.squared_relu import reference

KERNEL = Kernel("squared_relu", serves={"liger": elsewhere.on_gpus}, elsewhere=("liger",), compiled="reference")


def squared_relu(x: Tensor, kernels: str = "auto") -> Tensor:
    """max(x, 0)² elementwise (arXiv 2109.08668), x [..., F] of any strides; NaN stays NaN. kernels: of `registry.CHOICES`."""
    chosen = KERNEL.choose(kernels, x)
    if chosen == "reference":
        return reference.squared_relu(x)
    if chosen in elsewhere.PACKAGES:
        return elsewhere.squared_relu(x)
    return squared_relu_operator(x, "", "")[0]


def squared_relu_mx(x: Tensor, format: str, scale: str = "floor", kernels: str = "auto") -> tuple[Tensor, MXTensor]:
    """(`squared_relu` of x [..., F], the same in MX), the last bit for bit `quantize` of the first.

    format: of `models.formats.names.FORMATS` but nvfp4, in blocks along the last dim; scale: of `models.formats.scales.MODES`;
    F a multiple of 32. Gradients go by the first.
    """
    element = check_output(format, scale, x.shape[-1], x.dtype)
    if KERNEL.choose(kernels, x) == "triton":
        y, elements, scales = squared_relu_operator(x, element, scale)
        return y, put_together(elements, scales, format)
    y = squared_relu(x, kernels)
    return y, reference_output(y, format, scale)


@torch.library.custom_op(
    "triaxis::squared_relu",
    mutates_args=(),
    schema="(Tensor x, str element, str mode) -> (Tensor, Tensor, Tensor)",
)
def squared_relu_operator(x: Tensor, element: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., F] -> (y like it, contiguous, its MX elements and scales, empty where `element` is)."""
    from models.kernels.squared_relu.triton import squared_relu

    return squared_relu(x, element, mode)


@squared_relu_operator.register_fake
def _(x: Tensor, element: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    return y, *empty_output(y, element)


@torch.library.custom_op(
    "triaxis::squared_relu_backward", mutates_args=(), schema="(Tensor upstream, Tensor x) -> Tensor"
)
def squared_relu_backward(upstream: Tensor, x: Tensor) -> Tensor:
    """Gradient of x, contiguous."""
    from models.kernels.squared_relu.triton import squared_relu_backward

    return squared_relu_backward(upstream, x)


@squared_relu_backward.register_fake
def _(upstream: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(inputs[0])


def _gradient(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return torch.ops.triaxis.squared_relu_backward(upstream, *ctx.saved_tensors), None, None


squared_relu_operator.register_autograd(_gradient, setup_context=_keep)
