"""Copies of tokens in the order of their experts, and their weighted sums, in plain torch.

Tensors that backward needs are all saved with autograd, those of an order too: so a layer that is computed again keeps none
of them, and hooks that move what is saved see them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from models.kernels.moe_permute.order import Order


def permute(tokens: Tensor, order: Order) -> Tensor:
    """[N, H] -> the rows, [R, H]."""
    return _spread(tokens, order) if is_compiling() else _Spread.apply(tokens, order)


def unpermute(results: Tensor, weights: Tensor, order: Order) -> Tensor:
    """results [R, H] of the rows, weights [N x K] -> weighted sums [N, H], in the type of the results."""
    return _summed(results, weights, order) if is_compiling() else _Combine.apply(results, weights, order)


def _of_tokens(tokens: Tensor, rows: Tensor, top_k: int, filled: bool) -> Tensor:
    """[N, H] -> [R, H], zero where no token stands. rows, filled and the like: of an `Order`."""
    return (_and_zero(tokens) if filled else tokens).index_select(0, rows // top_k)


def _of_choices(x: Tensor, place: Tensor, top_k: int, dropped: bool) -> Tensor:
    """[R, H] -> [N, K, H], zero for what was dropped."""
    return (_and_zero(x) if dropped else x).index_select(0, place).unflatten(0, (-1, top_k))


def _and_zero(rows: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))


def _spread(tokens: Tensor, order: Order) -> Tensor:
    return _of_tokens(tokens, order.rows, order.top_k, order.filled)


def _summed(results: Tensor, weights: Tensor, order: Order) -> Tensor:
    shares = weights.to(results.dtype).view(-1, 1, order.top_k)
    return (shares @ _of_choices(results, order.place, order.top_k, order.dropped)).squeeze(1)


class _Spread(torch.autograd.Function):
    """Gathers copies of tokens; its gradient gathers, too, and sums K rows, where autograd's would scatter."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Order) -> Tensor:
        ctx.top_k, ctx.dropped = order.top_k, order.dropped
        ctx.save_for_backward(order.place)
        return _spread(tokens, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        return _of_choices(gradient, place, ctx.top_k, ctx.dropped).sum(1), None


class _Combine(torch.autograd.Function):
    """Weighted sums over the choices of a token, in the type of the results."""

    @staticmethod
    def forward(ctx: Any, results: Tensor, weights: Tensor, order: Order) -> Tensor:
        ctx.top_k, ctx.dropped, ctx.filled = order.top_k, order.dropped, order.filled
        ctx.save_for_backward(results, weights, order.rows, order.place)
        return _summed(results, weights, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        results, weights, rows, place = ctx.saved_tensors
        shares = weights.to(results.dtype)
        shares = (_and_zero(shares) if ctx.filled else shares).index_select(0, rows)
        for_results = _of_tokens(gradient, rows, ctx.top_k, ctx.filled) * shares.unsqueeze(1)
        for_weights = (_of_choices(results, place, ctx.top_k, ctx.dropped) @ gradient.unsqueeze(2)).flatten()
        return for_results, for_weights.to(weights.dtype), None
