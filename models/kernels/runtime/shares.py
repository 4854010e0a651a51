"""Sums over rows that many programs have each a share of, in an order that no GPU changes: no atomics, and torch's own sum
splits by the number of multiprocessors."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded

MOST = 256
"""Shares that one program adds up at a time."""


@kernel
def _add(shares, total, count, step, WIDTH: tl.constexpr, COUNT: tl.constexpr, COLUMNS: tl.constexpr):
    """shares [count, WIDTH] -> total [programs of axis 1, WIDTH]: a program adds blocks of COUNT rows, `step` rows apart."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    within = column < WIDTH
    found = tl.zeros((COUNT, COLUMNS), shares.dtype.element_ty)
    for start in range(tl.program_id(1) * COUNT, count, step):
        share = start + tl.arange(0, COUNT)[:, None]
        mask = (share < count) & within
        found += tl.load(shares + share.to(tl.int64) * WIDTH + column, mask=mask, other=0.0)
    place = tl.program_id(1) * WIDTH + column
    tl.store(total + place, rounded(tl.sum(found, 0)[None, :], total.dtype.element_ty), mask=within)


def add_shares(shares: Tensor, dtype: torch.dtype) -> Tensor:
    """[count, width], float32 or float64, -> their sum over the first dim, [width] in `dtype`."""
    if shares.shape[0] > MOST:
        programs = min(MOST // 4, triton.cdiv(shares.shape[0], MOST))
        shares = _launch(shares, shares.new_empty(programs, shares.shape[1]))
    return _launch(shares, shares.new_empty(1, shares.shape[1], dtype=dtype))[0]


def _launch(shares: Tensor, total: Tensor) -> Tensor:
    count, width = shares.shape
    programs, block = total.shape[0], min(MOST, triton.next_power_of_2(count))
    columns = min(32, triton.next_power_of_2(width))  # 128 bytes of float32, a line of memory
    grid = (triton.cdiv(width, columns), programs)
    _add[grid](shares, total, count, programs * block, width, block, columns, num_warps=4)
    return total


def share_compilations(width: int) -> Iterator[Compilation]:
    """The last step of a gradient of `width` weights."""
    names = {"shares": "*fp32", "total": "*bf16", "count": "i32", "step": "i32"}
    yield Compilation(_add, names, {"WIDTH": width, "COUNT": MOST, "COLUMNS": min(32, width)})
