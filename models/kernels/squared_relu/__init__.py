"""Squared ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.kernels import elsewhere
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
    return squared_relu_operator(x)


@torch.library.custom_op("triaxis::squared_relu", mutates_args=(), schema="(Tensor x) -> Tensor")
def squared_relu_operator(x: Tensor) -> Tensor:
    """x [..., F] -> the same, contiguous."""
    from models.kernels.squared_relu.triton import squared_relu

    return squared_relu(x)


@squared_relu_operator.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


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


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, upstream: Tensor) -> Tensor:
    return torch.ops.triaxis.squared_relu_backward(upstream, *ctx.saved_tensors)


squared_relu_operator.register_autograd(_gradient, setup_context=_keep)
