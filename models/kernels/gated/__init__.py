"""SwiGLU and GEGLU over one tensor that holds gate and up side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.kernels import elsewhere
from models.kernels.gated import reference
from models.kernels.registry import Kernel

_KERNEL = Kernel("gated", serves={"liger": elsewhere.on_gpus}, elsewhere=("liger",), compiled="reference")

KERNELS = {
    "silu": _KERNEL,
    "gelu": Kernel("gated", compiled="reference"),  # liger-kernel has GELU by tanh alone
    "gelu_tanh": _KERNEL,
}


def gated(x: Tensor, activation: str, kernels: str = "auto") -> Tensor:
    """activation(gate) * up (arXiv 2002.05202), where x [..., 2F] holds gate and up side by side: [..., F].

    activation: silu (SwiGLU), gelu (by the error function) or gelu_tanh (GEGLU). kernels: of `registry.CHOICES`. Triton
    computes in float32 (float64 for float64) and rounds once.
    """
    if activation not in KERNELS:
        raise ModelError(f"activation={activation}: is none of a gated layer; choose one of {', '.join(KERNELS)}")
    if x.shape[-1] % 2:
        raise ModelError(f"a gated activation of {x.shape[-1]} features: gate and up side by side make an even number")
    chosen = KERNELS[activation].choose(kernels, x)
    if chosen == "reference":
        return reference.gated(x, activation)
    if chosen in elsewhere.PACKAGES:
        return elsewhere.gated(x, activation)
    return gated_operator(x, activation)


@torch.library.custom_op("triaxis::gated", mutates_args=(), schema="(Tensor x, str activation) -> Tensor")
def gated_operator(x: Tensor, activation: str) -> Tensor:
    """x [..., 2F] -> [..., F], contiguous."""
    from models.kernels.gated.triton import gated

    return gated(x, activation)


@gated_operator.register_fake
def _(x: Tensor, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


@torch.library.custom_op(
    "triaxis::gated_backward", mutates_args=(), schema="(Tensor upstream, Tensor x, str activation) -> Tensor"
)
def gated_backward(upstream: Tensor, x: Tensor, activation: str) -> Tensor:
    """Gradient of x [..., 2F], contiguous."""
    from models.kernels.gated.triton import gated_backward

    return gated_backward(upstream, x, activation)


@gated_backward.register_fake
def _(upstream: Tensor, x: Tensor, activation: str) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    x, ctx.activation = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
    return torch.ops.triaxis.gated_backward(upstream, *ctx.saved_tensors, ctx.activation), None


gated_operator.register_autograd(_gradient, setup_context=_keep)
