"""What RMSNorm and LayerNorm share: the operators `triaxis::row_norm` and its gradient, over Triton."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.kernels.mx_output import empty_output

WIDEST = 16384
"""Elements of a row: beyond, a row and its gradient do not fit into a multiprocessor's registers backward."""


def refuses(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """Why Triton cannot norm a tensor."""
    if shape[-1] > WIDEST:
        return f"rows of {shape[-1]} elements are longer than {WIDEST}, which registers hold"
    return None


@torch.library.custom_op(
    "triaxis::row_norm",
    mutates_args=(),
    schema="(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps, bool centred, "
    "str element, str mode) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def row_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    element: str,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x [..., N], with `residual` x + residual, normed over N: (y, stream, mean, factor, elements, scales).

    stream: x + residual, in the dtype of x, empty without one. mean, factor: of each row, float32 (float64 for float64), the
    factor is 1 / sqrt(variance + eps); the mean is empty unless `centred`, which LayerNorm is and RMSNorm is not. y is
    contiguous, of the dtype of x, rounded once. elements, scales: y in MX, of an element of `models.formats.elements` under
    scales of a mode of `models.formats.scales`; empty where `element` is.
    """
    from models.kernels.row_norm.triton import norm

    return norm(x, residual, weight, bias, eps, centred, element, mode)


@row_norm.register_fake
def _(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    element: str,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    factor = x.new_empty(y.numel() // y.shape[-1], dtype=_accumulator(x.dtype))
    stream = y.new_empty(0 if residual is None else x.shape)
    return y, stream, factor.new_empty(len(factor) if centred else 0), factor, *empty_output(y, element)


@torch.library.custom_op(
    "triaxis::row_norm_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor? through, Tensor x, Tensor weight, bool has_bias, Tensor mean, Tensor factor) -> "
    "(Tensor, Tensor, Tensor)",
)
def row_norm_backward(
    upstream: Tensor, through: Tensor | None, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (or of both x and residual), weight and bias (empty without one). x: what was normed; through: the
    gradient that reached the stream by another way."""
    from models.kernels.row_norm.triton import norm_backward

    return norm_backward(upstream, through, x, weight, has_bias, mean, factor)


@row_norm_backward.register_fake
def _(
    upstream: Tensor, through: Tensor | None, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), weight.new_empty(weight.shape if has_bias else 0)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, residual, weight, bias, *_ = inputs
    _, stream, mean, factor, _, _ = output
    ctx.set_materialize_grads(False)
    ctx.has_residual, ctx.has_bias = residual is not None, bias is not None
    ctx.save_for_backward(x if residual is None else stream, weight, mean, factor)


def _gradient(ctx: Any, upstream: Tensor | None, through: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, factor = ctx.saved_tensors
    through = through if ctx.has_residual else None
    if upstream is None:  # only the stream was used
        return through, through, *(None,) * 6
    for_x, for_weight, for_bias = torch.ops.triaxis.row_norm_backward(
        upstream, through, x, weight, ctx.has_bias, mean, factor
    )
    return for_x, for_x if ctx.has_residual else None, for_weight, for_bias if ctx.has_bias else None, *(None,) * 4


row_norm.register_autograd(_gradient, setup_context=_keep)


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
