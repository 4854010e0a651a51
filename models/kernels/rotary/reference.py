"""Rotary positions in plain torch (RoFormer, arXiv 2104.09864).

Their gradient, the rotation back, is written out, in fewer passes over memory than autograd's own composition; a compiler
finds fewer passes still and cannot see into what is written out: while one traces, it is given the composition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn pairs (i, i + D/2) of x [S, B, heads, D] by their position's angles.

    cosine, sine: [S, 1, 1, D] or [S, B, 1, D], both halves filled, the first half of the sine negated.
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
