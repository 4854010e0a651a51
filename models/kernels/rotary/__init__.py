"""Rotary positions: of heads by themselves, and in place of the query and key heads in a fused tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from models.kernels.registry import Kernel
from models.kernels.rotary import reference

KERNEL = Kernel("rotary", compiled="reference")


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, kernels: str = "auto") -> Tensor:
    """Turn pairs (i, i + D/2) of x [S, B, heads, D] by their position's angles (arXiv 2104.09864).

    cosine, sine: [S, 1, 1, D] or [S, B, 1, D], both halves filled, the first half of the sine negated; without gradient.
    kernels: of `registry.CHOICES`.
    """
    if KERNEL.choose(kernels, x) == "reference":
        return reference.rotate(x, cosine, sine)
    return rotary(x, cosine, sine, x.shape[-2], False)


def split_and_rotate(
    qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor, kernels: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """[S, B, (heads + 2 kv_heads) D] -> query [S, B, heads, D] and key [S, B, kv_heads, D], both rotated, and value.

    cosine, sine, kernels: as for `rotate`. Triton turns query and key where they lie: qkv holds them afterwards, and nobody may
    want it as it was (a linear layer's backward does not; autograd refuses who does). Not so while torch.compile traces, which
    follows no change in place.
    """
    if KERNEL.choose(kernels, qkv) == "reference":
        return reference.split_and_rotate(qkv, heads, kv_heads, cosine, sine)
    if not is_compiling():
        return _InPlace.apply(qkv, heads, kv_heads, cosine, sine)
    parts = qkv.unflatten(-1, (-1, cosine.shape[-1]))
    query, key, value = rotary(parts, cosine, sine, heads + kv_heads, False).split([heads, kv_heads, kv_heads], -2)
    return query, key, value


class _InPlace(torch.autograd.Function):
    """Forward changes its input; backward writes the three gradients side by side and turns two back in the same pass."""

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, kv_heads: int, cosine: Tensor, sine: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cosine, sine)
        qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
        parts = qkv.unflatten(-1, (-1, cosine.shape[-1]))
        rotary_(parts, cosine, sine, heads + kv_heads)
        query, key, value = parts.split([heads, kv_heads, kv_heads], -2)
        return query, key, value

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None, None, None]:
        return rotary_backward(query, key, value, *ctx.saved_tensors).flatten(-2), None, None, None, None


@torch.library.custom_op(
    "triaxis::rotary",
    mutates_args=(),
    schema="(Tensor x, Tensor cosine, Tensor sine, int turned, bool back) -> Tensor",
)
def rotary(x: Tensor, cosine: Tensor, sine: Tensor, turned: int, back: bool) -> Tensor:
    """x [S, B, heads, D] with its first heads turned, `turned` of them, or turned back; contiguous."""
    from models.kernels.rotary.triton import empty_like, turn

    x = _side_by_side(x)
    found = empty_like(x)
    turn(x[..., :turned, :], found[..., :turned, :], cosine, sine, back)
    found[..., turned:, :].copy_(x[..., turned:, :])
    return found


@rotary.register_fake
def _(x: Tensor, cosine: Tensor, sine: Tensor, turned: int, back: bool) -> Tensor:
    return x.new_empty(x.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, cosine, sine, ctx.turned, ctx.back = inputs
    ctx.save_for_backward(cosine, sine)


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    found = torch.ops.triaxis.rotary(upstream, *ctx.saved_tensors, ctx.turned, not ctx.back)
    return found, None, None, None, None


rotary.register_autograd(_gradient, setup_context=_keep)


@torch.library.custom_op(
    "triaxis::rotary_", mutates_args=("x",), schema="(Tensor(a!) x, Tensor cosine, Tensor sine, int turned) -> ()"
)
def rotary_(x: Tensor, cosine: Tensor, sine: Tensor, turned: int) -> None:
    """Turn the first heads of x [S, B, heads, D] in place, `turned` of them."""
    from models.kernels.rotary.triton import turn

    turn(x[..., :turned, :], x[..., :turned, :], cosine, sine, False)


@rotary_.register_fake
def _(x: Tensor, cosine: Tensor, sine: Tensor, turned: int) -> None:
    return None


@torch.library.custom_op(
    "triaxis::rotary_backward",
    mutates_args=(),
    schema="(Tensor query, Tensor key, Tensor value, Tensor cosine, Tensor sine) -> Tensor",
)
def rotary_backward(query: Tensor, key: Tensor, value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Gradients of turned query and key heads and of value heads -> that of the fused [S, B, all heads, D]."""
    from models.kernels.rotary.triton import turn

    parts = query, key, value
    sizes = [part.shape[-2] for part in parts]
    found = query.new_empty(*query.shape[:-2], sum(sizes), query.shape[-1])
    for part, target in zip(parts[:2], found.split(sizes, dim=-2), strict=False):
        turn(_side_by_side(part), target, cosine, sine, True)
    found[..., sizes[0] + sizes[1] :, :].copy_(value)
    return found


@rotary_backward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    heads = query.shape[-2] + key.shape[-2] + value.shape[-2]
    return query.new_empty(*query.shape[:-2], heads, query.shape[-1])


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
