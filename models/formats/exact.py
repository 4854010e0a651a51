"""Products of values that bfloat16 holds exactly, with sums and result in float32.

An element of 8 bits or fewer under a power of two is a bfloat16, so units for bfloat16 multiply two of them without rounding
either, at several times the rate of float32. On GPUs that is a product with its own type of result; on processors oneDNN takes
float32 and narrows operands itself, where the processor has such units (AVX512-BF16, AMX), which changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from models.formats.operand import Operand


def exact_values(
    a: Operand, b: Operand, dtype: torch.dtype, kernels: str
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """What `exact_product` takes, for operands of a product in `dtype`: the values of both, and what the product is to be
    multiplied by; None where it is not in float32, or an operand is in no format.

    NVFP4's elements are bfloat16's under their blocks' scales, not under the float32 scale of the whole tensor, which waits for
    the product, as in a GPU's own units.
    """
    if dtype != torch.float32 or a.layout is None or b.layout is None:
        return None
    held = torch.bfloat16 if a.tensors[0].is_cuda else torch.float32
    (left, first), (right, second) = (found.unscaled() for found in (a, b))
    scale = first if second is None else second if first is None else first * second
    return left.values(held, kernels), right.values(held, kernels), scale


@torch.library.custom_op("triaxis::exact_product", mutates_args=())
def exact_product(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    """a [M, R] times b [R, N], both bfloat16 on a GPU, else float32 with values that bfloat16 holds, times scale (float32, one
    number) where there is one -> float32 [M, N].

    An operator, because compiled code would not see the setting under which oneDNN runs.
    """
    if a.is_cuda:
        y = torch.mm(a, b, out_dtype=torch.float32)
    else:
        with _bfloat16_units():
            y = a @ b
    return y if scale is None else y.mul_(scale)


@exact_product.register_fake
def _(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.float32)


@torch.library.custom_op("triaxis::exact_grouped_product", mutates_args=())
def exact_grouped_product(a: Tensor, b: Tensor, ends: Tensor, scale: Tensor | None, loop: bool) -> Tensor:
    """`grouped_product` of operands such as `exact_product` takes, times scale -> float32."""
    if a.is_cuda:  # whose grouped product has no other type of result
        y = one_by_one(a, b, ends, lambda left, right: torch.mm(left, right, out_dtype=torch.float32))
    else:
        with _bfloat16_units():
            y = grouped_product(a, b, ends, loop)
    return y if scale is None else y.mul_(scale)


@exact_grouped_product.register_fake
def _(a: Tensor, b: Tensor, ends: Tensor, scale: Tensor | None, loop: bool) -> Tensor:
    shape = (a.shape[0], b.shape[-1])
    return a.new_empty(shape if b.ndim == 3 else (ends.shape[0], *shape), dtype=torch.float32)


def grouped_product(a: Tensor, b: Tensor, ends: Tensor, loop: bool) -> Tensor:
    """Products of groups of N rows, the e-th of which ends at row ends[e] (int32 [E]), ends[E - 1] being N.

    a [N, I], b [E, I, O] -> [N, O], each group's rows by its own matrix; or a [I, N], b [N, O] -> [E, I, O], sums over each
    group. loop: one product a group, for widths too that are no multiple of 16 bytes.
    """
    return one_by_one(a, b, ends, torch.mm) if loop else F.grouped_mm(a, b, offs=ends)


def one_by_one(a: Tensor, b: Tensor, ends: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`grouped_product` by a product of two matrices."""
    last = ends.tolist()
    spans = zip([0, *last[:-1]], last, strict=True)
    if b.ndim == 3:
        return torch.cat([product(a[first:end], matrix) for matrix, (first, end) in zip(b, spans, strict=True)])
    return torch.stack([product(a[:, first:end], b[first:end]) for first, end in spans])


@contextmanager
def _bfloat16_units() -> Iterator[None]:
    """oneDNN may narrow the operands of products in float32."""
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
