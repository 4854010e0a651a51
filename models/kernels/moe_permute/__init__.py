"""The way of tokens to their experts and back within a process: copies in the order of the experts, and weighted sums."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.kernels.moe_permute import reference
from models.kernels.moe_permute.order import Order as Order
from models.kernels.moe_permute.order import order_of as order_of
from models.kernels.registry import Kernel

KERNEL = Kernel("moe_permute")


def permute(tokens: Tensor, order: Order, kernels: str = "auto") -> Tensor:
    """Tokens [N, H] -> copies in the order of their experts, [R, H], zeros where no token stands."""
    _check("tokens", tokens.shape[0], order.place.shape[0] // order.top_k)
    if KERNEL.choose(kernels, tokens) == "reference":
        return reference.permute(tokens, order)
    return _permute(_rows(tokens), order.rows, order.place, order.top_k)


def unpermute(results: Tensor, weights: Tensor, order: Order, kernels: str = "auto") -> Tensor:
    """Results [R, H] of those rows and weights [..., K] of the tokens' choices -> weighted sums [N, H] in the type of the
    results; where a choice has no row it adds nothing."""
    _check("results", results.shape[0], order.rows.shape[0])
    _check("weights", weights.numel(), order.place.shape[0])
    if KERNEL.choose(kernels, results) == "reference":
        return reference.unpermute(results, weights.flatten(), order)
    return _unpermute(_rows(results), weights.flatten(), order.rows, order.place, order.top_k)


def _check(what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ModelError(f"moe_permute: {found} {what} do not fit an order of {expected}")


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _functions() -> Any:
    return import_module(f"{__name__}.triton")


@torch.library.custom_op("triaxis::moe_permute", mutates_args=())
def _permute(tokens: Tensor, rows: Tensor, place: Tensor, top_k: int) -> Tensor:
    return _functions().gather(tokens, rows, place.shape[0], top_k)


@_permute.register_fake
def _(tokens: Tensor, rows: Tensor, place: Tensor, top_k: int) -> Tensor:
    return tokens.new_empty(rows.shape[0], tokens.shape[1])


@torch.library.custom_op("triaxis::moe_permute_backward", mutates_args=())
def _permute_backward(gradient: Tensor, place: Tensor, top_k: int) -> Tensor:
    return _functions().summed(_rows(gradient), place, None, top_k)


@_permute_backward.register_fake
def _(gradient: Tensor, place: Tensor, top_k: int) -> Tensor:
    return gradient.new_empty(place.shape[0] // top_k, gradient.shape[1])


@torch.library.custom_op("triaxis::moe_unpermute", mutates_args=())
def _unpermute(results: Tensor, weights: Tensor, rows: Tensor, place: Tensor, top_k: int) -> Tensor:
    return _functions().summed(results, place, weights, top_k)


@_unpermute.register_fake
def _(results: Tensor, weights: Tensor, rows: Tensor, place: Tensor, top_k: int) -> Tensor:
    return results.new_empty(place.shape[0] // top_k, results.shape[1])


@torch.library.custom_op("triaxis::moe_unpermute_backward", mutates_args=())
def _unpermute_backward(
    gradient: Tensor, results: Tensor, weights: Tensor, rows: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    return _functions().weighted_gradients(_rows(gradient), results, weights, rows, top_k)


@_unpermute_backward.register_fake
def _(gradient: Tensor, results: Tensor, weights: Tensor, rows: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    return results.new_empty(results.shape), torch.empty_like(weights)


def _setup_permute(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, _, place, ctx.top_k = inputs
    ctx.save_for_backward(place)


def _differentiate_permute(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (place,) = ctx.saved_tensors
    return _permute_backward(gradient, place, ctx.top_k), None, None, None


def _setup_unpermute(ctx: Any, inputs: tuple, output: Tensor) -> None:
    results, weights, rows, _, ctx.top_k = inputs
    ctx.save_for_backward(results, weights, rows)


def _differentiate_unpermute(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return *_unpermute_backward(gradient, *ctx.saved_tensors, ctx.top_k), None, None, None


_permute.register_autograd(_differentiate_permute, setup_context=_setup_permute)
_unpermute.register_autograd(_differentiate_unpermute, setup_context=_setup_unpermute)
