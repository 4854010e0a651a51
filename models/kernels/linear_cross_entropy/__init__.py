"""The losses of an output head without its logits: `chunks.py` says how."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_compiling

from models.errors import ModelError
from models.kernels.cross_entropy.vocabulary import Terms, VocabAxis, accumulated_in
from models.kernels.linear_cross_entropy import chunks, reference
from models.kernels.linear_cross_entropy.chunks import HeadFunctions, How, Wanted
from models.kernels.registry import Kernel

KERNEL = Kernel("linear_cross_entropy")
_Saved = tuple[Tensor, Tensor, Tensor, Tensor]


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    axis: VocabAxis | None = None,
    chunk: int = 0,
    kernels: str = "auto",
) -> Tensor:
    """Losses in nats, float32 [S, B] (of float64 input float64), of x [S, B, H], the head's rows [V, H] or this rank's share of
    them, and targets int64 [S, B] in the vocabulary; their terms are `Terms`.

    weights: [S, B], what the caller is going to multiply its losses by before it sums them: three products instead of four;
    with other upstream gradients the result is right too. chunk: tokens at a time; 0 for as many as 256 MiB of logits are.
    Over an axis x must be the same on every rank, and its gradient is this rank's part of a sum over the ranks.
    """
    terms = Terms(z_loss, label_smoothing)
    _check(x, weight, targets, weights, chunk)
    flat, flat_targets = x.flatten(0, -2), targets.flatten()
    wide = accumulated_in(x.dtype)
    scale = None if weights is None else weights.detach().flatten().to(wide).contiguous()
    chunk = chunk or chunks.chunk_for(flat.shape[0], weight.shape[0], x.element_size())
    kind = KERNEL.choose(kernels, x)
    wanted = [torch.is_grad_enabled() and part.requires_grad for part in (x, weight)]
    if kind == "reference" and axis is None and is_compiling():
        losses = reference.linear_cross_entropy(flat, weight, flat_targets, terms)
    elif kind == "reference" or axis is not None:
        how = How(terms, axis, chunk, functions_of(kind))
        losses = _LinearCrossEntropy.apply(flat, weight, flat_targets, scale, how, Wanted(*wanted))
    else:
        losses = _forward(flat, weight, flat_targets, scale, z_loss, label_smoothing, chunk, *wanted)[0]
    return losses.view(targets.shape)


def _check(x: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, chunk: int) -> None:
    if x.shape[-1] != weight.shape[-1] or x.dtype != weight.dtype:
        raise ModelError(
            f"linear_cross_entropy: weight {tuple(weight.shape)} of {weight.dtype} does not fit input {tuple(x.shape)} of "
            f"{x.dtype}"
        )
    for name, part in (("targets", targets), ("weights", weights)):
        if part is not None and part.shape != x.shape[:-1]:
            raise ModelError(
                f"linear_cross_entropy: {name} {tuple(part.shape)} are not one for each row of {tuple(x.shape)}"
            )
    if chunk < 0:
        raise ModelError(f"linear_cross_entropy: chunk={chunk}: must be at least 1, or 0 to choose")


def functions_of(kind: str) -> HeadFunctions:
    """The functions of an implementation."""
    return cast(HeadFunctions, reference if kind == "reference" else import_module(f"{__name__}.triton"))


def _gradients(
    upstream: Tensor, scale: Tensor | None, for_x: Tensor, for_weight: Tensor, again: _Saved, how: How, wanted: Wanted
) -> tuple[Tensor, Tensor]:
    """Those of forward, if upstream is a number times the scale that it took, or those made again from `again`: x, weight,
    targets, lse."""
    made = (for_x.numel() or not wanted.x) and (for_weight.numel() or not wanted.weight)
    factor = chunks.factor_between(upstream, scale) if made and scale is not None else None
    if factor is None:
        return chunks.backward(upstream, *again, how, wanted)
    return chunks.scaled(factor, for_x, for_weight, again[1])


class _LinearCrossEntropy(torch.autograd.Function):
    """What no operator can be: it may ask other ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor | None, how: How, wanted: Wanted
    ) -> Tensor:
        losses, lse, for_x, for_weight = chunks.forward(x, weight, targets, scale, how, wanted)
        ctx.save_for_backward(x, weight, targets, lse, scale, for_x, for_weight)
        ctx.how = how
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, targets, lse, scale, for_x, for_weight = ctx.saved_tensors
        wanted = Wanted(*ctx.needs_input_grad[:2])
        again = (x, weight, targets, lse)
        found = _gradients(upstream.contiguous(), scale, for_x, for_weight, again, ctx.how, wanted)
        return found[0] if wanted.x else None, found[1] if wanted.weight else None, None, None, None, None


@torch.library.custom_op("triaxis::linear_cross_entropy", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor | None,
    z_loss: float,
    label_smoothing: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    how = How(Terms(z_loss, label_smoothing), None, chunk, functions_of("triton"))
    return chunks.forward(x, weight, targets, scale, how, Wanted(for_x, for_weight))


@_forward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor | None,
    z_loss: float,
    label_smoothing: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = accumulated_in(x.dtype)
    losses = x.new_empty(x.shape[0], dtype=wide)
    made = scale is not None
    rows = torch.empty_like(x) if made and for_x else x.new_empty(0)
    sums = torch.empty_like(weight, dtype=wide) if made and for_weight else weight.new_empty(0, dtype=wide)
    return losses, torch.empty_like(losses), rows, sums


@torch.library.custom_op("triaxis::linear_cross_entropy_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    scale: Tensor | None,
    rows: Tensor,
    sums: Tensor,
    z_loss: float,
    label_smoothing: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    how = How(Terms(z_loss, label_smoothing), None, chunk, functions_of("triton"))
    again, wanted = (x, weight, targets, lse), Wanted(for_x, for_weight)
    return _gradients(upstream, scale, rows, sums, again, how, wanted)


@_backward.register_fake
def _(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    lse: Tensor,
    scale: Tensor | None,
    rows: Tensor,
    sums: Tensor,
    z_loss: float,
    label_smoothing: float,
    chunk: int,
    for_x: bool,
    for_weight: bool,
) -> tuple[Tensor, Tensor]:
    found = torch.empty_like(x) if for_x else x.new_empty(0)
    return found, torch.empty_like(weight) if for_weight else weight.new_empty(0)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    x, weight, targets, scale, *ctx.rest = inputs
    _, lse, rows, sums = output
    ctx.save_for_backward(x, weight, targets, lse, scale, rows, sums)
    ctx.mark_non_differentiable(lse, rows, sums)
    ctx.set_materialize_grads(False)  # zeros for the sums would be as large as the head


def _differentiate(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 9
    found = _backward(upstream.contiguous(), *ctx.saved_tensors, *ctx.rest)
    for_x, for_weight = ctx.rest[-2:]
    return found[0] if for_x else None, found[1] if for_weight else None, *(None,) * 7


_forward.register_autograd(_differentiate, setup_context=_setup)
