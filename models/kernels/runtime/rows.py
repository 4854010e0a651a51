"""Tensors [..., N] as a list of rows, without a copy where two strides reach them all, and sizes of tiles over such rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Row r of x begins at (r // inner) * outer_stride + (r % inner) * inner_stride, in elements; its own are side by side.

    Two strides reach the heads of a fused query-key-value tensor: one from token to token, one from head to head.
    """

    x: Tensor
    count: int
    inner: int
    outer_stride: int
    inner_stride: int

    @property
    def places(self) -> tuple[int, int, int]:
        """What a kernel is told."""
        return self.inner, self.outer_stride, self.inner_stride


def rows_of(x: Tensor) -> Rows:
    """The rows of x [..., N], in order; of a contiguous copy where x has more strides than two or gaps within rows."""
    merged = _merge(x)
    if merged is None:
        x = x.contiguous()
        merged = _merge(x)
    assert merged is not None
    count = x.numel() // max(1, x.shape[-1])
    (_, outer_stride), (inner, inner_stride) = merged
    return Rows(x, count, inner, outer_stride, inner_stride)


def _merge(x: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Leading dims as two of (size, stride), the outer and the inner one."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return None
    found: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True):
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    if len(found) > 2:
        return None
    width = x.shape[-1]
    if len(found) < 2:  # one stride is the outer one, so that a row number is divided by 1
        found = [*(found or [(1, width)]), (1, width)]
    return found[0], found[1]


class Tile(NamedTuple):
    """rows x block elements that one program holds at a time. block: a power of two, at least the width."""

    rows: int
    block: int
    warps: int


def tile_of(width: int, elements: int = 4096) -> Tile:
    """Whole rows, at least `elements` in all, 16 a thread: two 16-byte loads of bfloat16 in flight for each.

    It follows from the width alone, so a row is summed in the same order whatever rows are beside it.
    """
    block = max(32, 1 << (width - 1).bit_length())
    rows = max(1, elements // block)
    return Tile(rows, block, min(32, max(1, rows * block // 512)))


def piece_of(width: int, elements: int = 2048) -> Tile:
    """Pieces of rows for what needs no sum over a row: `elements` in all, 16 a thread."""
    block = max(32, min(elements, 1 << (width - 1).bit_length()))
    return Tile(elements // block, block, max(1, elements // 512))


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What kernels compute in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def triton_type(dtype: torch.dtype) -> Any:
    """Of an accumulator."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def in_memory(x: Tensor, dim: int) -> tuple[Tensor, int]:
    """x or a view of it, contiguous, and which of its dims is `dim`: the last, where that is how x lies; copied where x lies
    otherwise than either."""
    x = x.detach()
    if dim != x.ndim - 1 and x.movedim(dim, -1).is_contiguous():
        return x.movedim(dim, -1), x.ndim - 1
    return x.contiguous(), dim
