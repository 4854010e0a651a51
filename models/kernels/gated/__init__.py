"""SwiGLU and GEGLU over one tensor that holds gate and up side by side."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats import MXTensor
from models.kernels import elsewhere
from models.kernels.gated import reference
from models.kernels.mx_output import check_output, empty_output, put_together, reference_output
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
    return gated_operator(x, activation, "", "")[0]


def gated_mx(
    x: Tensor, activation: str, format: str, scale: str = "floor", kernels: str = "auto"
) -> tuple[Tensor, MXTensor]:
    """(`gated` of x [..., 2F], the same in MX), the last bit for bit `quantize` of the first.

    format: of `models.formats.names.FORMATS` but nvfp4, in blocks along the last dim; scale: of `models.formats.scales.MODES`;
    F a multiple of 32. Gradients go by the first.
    """
    element = check_output(format, scale, x.shape[-1] // 2, x.dtype)
    if activation in KERNELS and KERNELS[activation].choose(kernels, x) == "triton":
        y, elements, scales = gated_operator(x, activation, element, scale)
        return y, put_together(elements, scales, format)
    y = gated(x, activation, kernels)
    return y, reference_output(y, format, scale)


@torch.library.custom_op(
    "triaxis::gated",
    mutates_args=(),
    schema="(Tensor x, str activation, str element, str mode) -> (Tensor, Tensor, Tensor)",
)
def gated_operator(x: Tensor, activation: str, element: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., 2F] -> (y [..., F], contiguous, its MX elements and scales, empty where `element` is)."""
    from models.kernels.gated.triton import gated

    return gated(x, activation, element, mode)


@gated_operator.register_fake
def _(x: Tensor, activation: str, element: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], x.shape[-1] // 2)
    return y, *empty_output(y, element)


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


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, ctx.activation, _, _ = inputs
    ctx.save_for_backward(x)


def _gradient(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    return torch.ops.triaxis.gated_backward(upstream, *ctx.saved_tensors, ctx.activation), None, None, None


gated_operator.register_autograd(_gradient, setup_context=_keep)
