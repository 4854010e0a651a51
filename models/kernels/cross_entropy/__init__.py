"""Cross entropy of logits that are there; `linear_cross_entropy` is for those that need not be."""

from __future__ import annotations

from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.compiler import is_compiling

from models.errors import ModelError
from models.kernels.cross_entropy import reference
from models.kernels.cross_entropy.vocabulary import (
    Place,
    RowFunctions,
    Terms,
    VocabAxis,
    accumulated_in,
    measured,
)
from models.kernels.registry import Kernel

KERNEL = Kernel("cross_entropy")


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    axis: VocabAxis | None = None,
    in_place: bool = False,
    kernels: str = "auto",
) -> Tensor:
    """Losses in nats, float32 (of float64 logits float64), of logits [..., V] or this rank's share of them, and targets int64
    [...] in the vocabulary; their terms are `Terms`.

    in_place: backward may write the gradient over the logits, which saves their size in memory. They are lost then, and a
    second backward through the same graph is an error.
    """
    terms = Terms(z_loss, label_smoothing)
    if targets.shape != logits.shape[:-1]:
        raise ModelError(
            f"cross_entropy: targets {tuple(targets.shape)} are not one for each row of {tuple(logits.shape)}"
        )
    if logits.stride(-1) != 1:
        logits = logits.contiguous()
    flat, flat_targets = logits.flatten(0, -2), targets.flatten()
    kind = KERNEL.choose(kernels, logits)
    if kind == "reference" and axis is None:
        losses = reference.cross_entropy(flat, flat_targets, terms)
    elif axis is not None or (in_place and not is_compiling()):
        losses = _CrossEntropy.apply(flat, flat_targets, terms, axis, in_place, rows_of(kind))
    else:
        losses = _forward(flat, flat_targets, z_loss, label_smoothing)[0]
    return losses.view(targets.shape)


def rows_of(kind: str) -> RowFunctions:
    """The functions of an implementation."""
    return cast(RowFunctions, reference if kind == "reference" else import_module(f"{__name__}.triton"))


class _CrossEntropy(torch.autograd.Function):
    """What no operator can be: it asks other ranks, or writes over what it was given."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor,
        terms: Terms,
        axis: VocabAxis | None,
        in_place: bool,
        rows: RowFunctions,
    ) -> Tensor:
        place = Place.of(axis, logits.shape[-1])
        losses, lse = measured(rows, logits, targets, place, terms, axis)
        ctx.save_for_backward(logits, targets, lse)
        ctx.place, ctx.terms, ctx.in_place, ctx.rows = place, terms, in_place, rows
        return losses

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, lse = ctx.saved_tensors
        out = logits.detach() if ctx.in_place else torch.empty_like(logits)
        ctx.rows.gradient(logits, targets, lse, upstream.contiguous(), ctx.place, ctx.terms, out)
        if ctx.in_place:  # a Triton function's writes are not seen; whoever reads the logits again shall be told
            torch.autograd.graph.increment_version(logits)
        return out, None, None, None, None, None


@torch.library.custom_op("triaxis::cross_entropy", mutates_args=())
def _forward(logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    return rows_of("triton").losses(logits, targets, Terms(z_loss, label_smoothing))


@_forward.register_fake
def _(logits: Tensor, targets: Tensor, z_loss: float, label_smoothing: float) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(logits.shape[0], dtype=accumulated_in(logits.dtype))
    return losses, torch.empty_like(losses)


@torch.library.custom_op("triaxis::cross_entropy_backward", mutates_args=())
def _backward(
    upstream: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, z_loss: float, label_smoothing: float
) -> Tensor:
    out, place = torch.empty_like(logits), Place.of(None, logits.shape[-1])
    rows_of("triton").gradient(logits, targets, lse, upstream, place, Terms(z_loss, label_smoothing), out)
    return out


@_backward.register_fake
def _(upstream: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, z_loss: float, label_smoothing: float) -> Tensor:
    return torch.empty_like(logits)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    logits, targets, *ctx.terms = inputs
    ctx.save_for_backward(logits, targets, output[1])
    ctx.set_materialize_grads(True)


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, targets, lse = ctx.saved_tensors
    return _backward(upstream.contiguous(), logits, targets, lse, *ctx.terms), None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup)
