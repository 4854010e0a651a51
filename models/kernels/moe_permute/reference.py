"""Copies of tokens in the order of their experts, and their weighted sums, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from models.kernels.moe_permute.order import Order


def permute(tokens: Tensor, order: Order) -> Tensor:
    """[N, H] -> the rows, [R, H]."""
    return _of_tokens(tokens, order) if is_compiling() else _Spread.apply(tokens, order)


def unpermute(results: Tensor, weights: Tensor, order: Order) -> Tensor:
    """results [R, H] of the rows, weights [N x K] -> weighted sums [N, H], in the type of the results."""
    return _summed(results, weights, order) if is_compiling() else _Combine.apply(results, weights, order)


def _of_tokens(tokens: Tensor, order: Order) -> Tensor:
    return (_and_zero(tokens) if order.filled else tokens).index_select(0, order.rows // order.top_k)


def _of_choices(rows: Tensor, order: Order) -> Tensor:
    """[R, H] -> [N, K, H], zero for what was dropped."""
    return (_and_zero(rows) if order.dropped else rows).index_select(0, order.place).unflatten(0, (-1, order.top_k))


def _and_zero(rows: Tensor) -> Tensor:
    return torch.cat((rows, rows.new_zeros(1, *rows.shape[1:])))


def _summed(results: Tensor, weights: Tensor, order: Order) -> Tensor:
    shares = weights.to(results.dtype).view(-1, 1, order.top_k)
    return (shares @ _of_choices(results, order)).squeeze(1)


class _Spread(torch.autograd.Function):
    """Gathers copies of tokens; its gradient gathers, too, and sums K rows, where autograd's would scatter."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Order) -> Tensor:
        ctx.order = order
        return _of_tokens(tokens, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _of_choices(gradient, ctx.order).sum(1), None


class _Combine(torch.autograd.Function):
    """Weighted sums over the choices of a token, in the type of the results."""

    @staticmethod
    def forward(ctx: Any, results: Tensor, weights: Tensor, order: Order) -> Tensor:
        ctx.order = order
        ctx.save_for_backward(results, weights)
        return _summed(results, weights, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        results, weights = ctx.saved_tensors
        order: Order = ctx.order
        shares = weights.to(results.dtype)
        shares = (_and_zero(shares) if order.filled else shares).index_select(0, order.rows)
        for_results = _of_tokens(gradient, order) * shares.unsqueeze(1)
        for_weights = (_of_choices(results, order) @ gradient.unsqueeze(2)).flatten()
        return for_results, for_weights.to(weights.dtype), None
