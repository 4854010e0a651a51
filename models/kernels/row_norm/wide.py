"""The weight's gradient of rows too wide to be kept with it: their own gradient is taken alone, and x and the upstream gradient
are read a second time by columns. 10 bytes an element of bfloat16 where 6 would do, so 60 % of what memory allows at best."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.places import row_start
from models.kernels.runtime.rows import Rows, triton_type
from models.kernels.runtime.shares import add_shares

_ROWS, _COLUMNS, _PARTS = 32, 128, 16


@kernel
def _column_shares(
    upstream,
    x,
    mean,
    scale,
    weight_shares,
    bias_shares,
    rows,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    within = column < WIDTH
    for_weight = tl.zeros((ROWS, BLOCK), ACC)
    for_bias = tl.zeros((ROWS, BLOCK), ACC)
    for tile in tl.range(tl.program_id(1), tl.cdiv(rows, ROWS), tl.num_programs(1), num_stages=3):
        line = tile * ROWS + tl.arange(0, ROWS)[:, None]
        there = line < rows
        mask = there & within
        start = row_start(line, inner, outer_stride, inner_stride)
        normal = tl.load(x + start + column, mask=mask, other=0.0).to(ACC)
        coming = tl.load(upstream + line.to(tl.int64) * WIDTH + column, mask=mask, other=0.0).to(ACC)
        if CENTRED:
            normal -= tl.load(mean + line, mask=there, other=0.0)
        for_weight += coming * normal * tl.load(scale + line, mask=there, other=0.0)
        if HAS_BIAS:
            for_bias += coming
    share = tl.program_id(1) * WIDTH + column
    tl.store(weight_shares + share, tl.sum(for_weight, 0)[None, :], mask=within)
    if HAS_BIAS:
        tl.store(bias_shares + share, tl.sum(for_bias, 0)[None, :], mask=within)


def weight_gradients(
    upstream: Tensor, layout: Rows, mean: Tensor, scale: Tensor, has_bias: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Of weight and bias (empty without one), in `dtype`. upstream: contiguous."""
    width = layout.x.shape[-1]
    parts = min(_PARTS, triton.cdiv(layout.count, _ROWS))
    weight_shares = scale.new_empty(parts, width)
    bias_shares = torch.empty_like(weight_shares) if has_bias else scale.new_empty(0)
    _column_shares[(triton.cdiv(width, _COLUMNS), parts)](
        upstream,
        layout.x,
        mean,
        scale,
        weight_shares,
        bias_shares,
        layout.count,
        *layout.places,
        WIDTH=width,
        ACC=triton_type(scale.dtype),
        ROWS=_ROWS,
        BLOCK=_COLUMNS,
        CENTRED=mean.numel() > 0,
        HAS_BIAS=has_bias,
        num_warps=8,
    )
    for_bias = add_shares(bias_shares, dtype) if has_bias else scale.new_empty(0, dtype=dtype)
    return add_shares(weight_shares, dtype), for_bias


def column_compilation(width: int, centred: bool) -> Compilation:
    """bfloat16."""
    names = {"upstream": "*bf16", "x": "*bf16", "mean": "*fp32", "scale": "*fp32", "weight_shares": "*fp32"}
    names |= {"bias_shares": "*fp32", "rows": "i32", "inner": "i32", "outer_stride": "i32", "inner_stride": "i32"}
    constants = {"WIDTH": width, "ACC": tl.float32, "ROWS": _ROWS, "BLOCK": _COLUMNS, "inner": 1}
    constants |= {"CENTRED": centred, "HAS_BIAS": centred}
    return Compilation(_column_shares, names, constants, 8, ("outer_stride", "inner_stride"))
