"""Rotation by a Hadamard matrix along one dimension: it spreads an outlier over its group, and products of two tensors that
are rotated along the dimension they sum over stay what they were (QuIP#, arXiv 2402.04396; for MXFP4, arXiv 2502.20586).

Every implementation adds in the same order, so that all give the same bits, and a shard those of the whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.errors import ModelError
from models.kernels.hadamard import reference
from models.kernels.registry import Kernel
from models.random import uniform

LARGEST = 1024
"""Elements of a group, at most."""

KERNEL = Kernel("hadamard", cpu=("cpp",))


def rotate(x: Tensor, dim: int, size: int, signs: Tensor | None = None, kernels: str = "auto") -> Tensor:
    """Groups of `size` elements along `dim`, a multiple of it, times signs, times the orthonormal Hadamard matrix.

    x: float32, bfloat16 or float16, of any strides. size: a power of two up to `LARGEST`. signs: float32 [size] of 1 and -1,
    or None for none. kernels: of `registry.CHOICES`. Returns float32 of the shape of x, which kernels write with `dim` last in
    memory, as what reads it next wants it. ModelError for another size or width.
    """
    if size < 2 or size & (size - 1) or size > LARGEST:
        raise ModelError(f"hadamard size={size}: must be a power of two from 2 to {LARGEST}")
    if x.shape[dim] % size:
        raise ModelError(
            f"hadamard size={size}: does not divide the {x.shape[dim]} elements along dim {dim} of {tuple(x.shape)}"
        )
    chosen = KERNEL.choose(kernels, x)
    if chosen == "reference":
        return reference.rotate(x.movedim(dim, -1), size, signs).movedim(-1, dim)
    return hadamard_operator(x, dim % x.ndim, size, signs, chosen).movedim(-1, dim)


def random_signs(key: int, size: int) -> Tensor:
    """float32 [size] of 1 and -1, a function of the key."""
    return torch.where(uniform(key, torch.arange(size, device="cpu")) < 0.5, -1.0, 1.0).to(torch.float32)


@torch.library.custom_op("triaxis::hadamard", mutates_args=())
def hadamard_operator(x: Tensor, dim: int, size: int, signs: Tensor | None, implementation: str) -> Tensor:
    """x rotated along `dim`, not negative, which comes last: float32, contiguous."""
    if implementation == "cpp":
        from models.kernels.hadamard.cpp import rotate
    else:
        from models.kernels.hadamard.triton import rotate
    return rotate(x, dim, size, signs)


@hadamard_operator.register_fake
def _(x: Tensor, dim: int, size: int, signs: Tensor | None, implementation: str) -> Tensor:
    return x.new_empty(x.movedim(dim, -1).shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, ctx.dim, ctx.size, signs, ctx.implementation = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(*(() if signs is None else (signs,)))


def _gradient(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
    """The matrix is symmetric, so what was last comes first: the same rotation, then signs."""
    last = upstream.ndim - 1
    found = torch.ops.triaxis.hadamard(upstream, last, ctx.size, None, ctx.implementation)
    for signs in ctx.saved_tensors:
        found = (found.unflatten(-1, (-1, ctx.size)) * signs).flatten(-2)
    return found.movedim(-1, ctx.dim).to(ctx.dtype), None, None, None, None


hadamard_operator.register_autograd(_gradient, setup_context=_keep)

__all__ = ["KERNEL", "random_signs", "rotate"]
