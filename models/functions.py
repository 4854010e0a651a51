"""Functions whose gradient is written out, in fewer passes over memory than autograd's own composition of them.

A compiler finds fewer passes still, and cannot see into what is written out: while one traces, it is given the composition.

On CPU the passes beside the matrix products are a third of a small model's step: these save 5 % of it (`triaxis bench train`
and RESULTS.md). Each is held to autograd in float64 by tests/models/test_functions.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

_aten = torch.ops.aten


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dim, in float32; keeps the dtype of x (arXiv 1910.07467)."""
    if x.is_cuda or is_compiling():  # torch has one kernel for it there
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    return _RMSNorm.apply(x, weight, eps)


def gated(x: Tensor, activation: str) -> Tensor:
    """activation(gate) * up, where x [..., 2F] holds gate and up side by side (arXiv 2002.05202). activation: silu, gelu,
    gelu_tanh."""
    if is_compiling():
        gate, up = x.chunk(2, dim=-1)
        return _activate(gate, activation) * up
    return _Gated.apply(x, activation)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of x [S, B, heads, D] by their position's angles (arXiv 2104.09864).

    cosine, sine: [S, 1, 1, D], both halves filled, the first half of the sine negated.
    """
    if is_compiling():
        return x * cosine + x.roll(x.shape[-1] // 2, -1) * sine
    return _Rotation.apply(x, cosine, sine)


def split_and_rotate(
    qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[S, B, (heads + 2 kv_heads) D] -> query [S, B, heads, D] and key [S, B, kv_heads, D], both rotated, and value."""
    if is_compiling():
        query, key, value = qkv.unflatten(-1, (-1, cosine.shape[-1])).split([heads, kv_heads, kv_heads], dim=-2)
        return rotate(query, cosine, sine), rotate(key, cosine, sine), value
    return _SplitAndRotate.apply(qkv, heads, kv_heads, cosine, sine)


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


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: str) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        active = _activate(gate, activation)
        ctx.activation = activation
        ctx.save_for_backward(x, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, active = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        found = torch.empty_like(x)
        for_gate, for_up = found.chunk(2, dim=-1)
        torch.mul(gradient, active, out=for_up)
        torch.mul(gradient, up, out=for_gate)
        if ctx.activation == "silu":
            _aten.silu_backward.grad_input(for_gate, gate, grad_input=for_gate)
        else:
            _aten.gelu_backward.grad_input(
                for_gate, gate, approximate=_APPROXIMATE[ctx.activation], grad_input=for_gate
            )
        return found, None


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}


def _activate(gate: Tensor, activation: str) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate=_APPROXIMATE[activation])


class _Rotation(torch.autograd.Function):
    """Its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turn(x, cosine, sine, torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turn(gradient, cosine, -sine, torch.empty_like(gradient)), None, None


class _SplitAndRotate(torch.autograd.Function):
    """One rotation of query and key together; the three gradients meet where they are written."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        parts = qkv.unflatten(-1, (-1, cosine.shape[-1]))
        turning = parts[..., : heads + kv_heads, :]
        turned = _turn(turning, cosine, sine, torch.empty(turning.shape, dtype=qkv.dtype, device=qkv.device))
        return turned[..., :heads, :], turned[..., heads:, :], parts[..., heads + kv_heads :, :]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        cosine, sine = ctx.saved_tensors
        query, key, value = gradients
        sizes = [part.shape[-2] for part in gradients]
        found = query.new_empty(*query.shape[:-2], sum(sizes), query.shape[-1])
        for_query, for_key, for_value = found.split(sizes, dim=-2)
        back = -sine
        _turn(query, cosine, back, for_query)
        _turn(key, cosine, back, for_key)
        for_value.copy_(value)
        return found.flatten(-2), None, None, None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    torch.mul(x, cosine, out=out)
    out[..., :half].addcmul_(x[..., half:], sine[..., :half])
    out[..., half:].addcmul_(x[..., :half], sine[..., half:])
    return out
