"""PolyNorm: forward and backward read a row twice, first for its sums and then for its results; the second time it comes from
the caches of the multiprocessor, so that memory is read once: 4 bytes an element of bfloat16 forward, 6 backward.

A feed-forward's rows are long (28 KiB) and would fill the registers of a multiprocessor one at a time, with nothing to
overlap their sums with; in pieces, several programs fit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.mx_output import bits_of, empty_output
from models.kernels.mx_output.device import store_output
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.places import row_start
from models.kernels.runtime.rounding import rounded
from models.kernels.runtime.rows import Tile, accumulator, piece_of, rows_of, triton_type
from models.kernels.runtime.shares import add_shares, share_compilations


@kernel
def _forward(
    x,
    weight,
    bias,
    y,
    factors,
    elements,
    scales,
    rows,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ELEMENT: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
):
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    row = line.to(tl.int64)
    there = row < rows
    start = x + row_start(line, inner, outer_stride, inner_stride)
    first = tl.zeros((ROWS, BLOCK), ACC)
    second = tl.zeros((ROWS, BLOCK), ACC)
    third = tl.zeros((ROWS, BLOCK), ACC)
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        value = tl.load(start + column, mask=there & (column < WIDTH), other=0.0).to(ACC)
        square = value * value
        first += square
        second += square * square
        third += square * square * square
    one = 1 / tl.sqrt(tl.sum(first, 1)[:, None] / WIDTH + EPS)
    two = 1 / tl.sqrt(tl.sum(second, 1)[:, None] / WIDTH + EPS)
    three = 1 / tl.sqrt(tl.sum(third, 1)[:, None] / WIDTH + EPS)
    tl.store(factors + row * 3, one, mask=there)
    tl.store(factors + row * 3 + 1, two, mask=there)
    tl.store(factors + row * 3 + 2, three, mask=there)
    one *= tl.load(weight).to(ACC)
    two *= tl.load(weight + 1).to(ACC)
    three *= tl.load(weight + 2).to(ACC)
    shift = tl.load(bias).to(ACC)
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        mask = there & (column < WIDTH)
        value = tl.load(start + column, mask=mask, other=0.0).to(ACC)
        square = value * value
        found = rounded(shift + one * value + two * square + three * (square * value), y.dtype.element_ty)
        tl.store(y + row * WIDTH + column, found, mask=mask)
        if ELEMENT != "":
            store_output(elements, scales, found, row, begin, there, WIDTH, ELEMENT, MODE, BITS)


@kernel
def _backward(
    upstream,
    x,
    weight,
    factors,
    for_x,
    shares,
    rows,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    row = line.to(tl.int64)
    there = row < rows
    start = x + row_start(line, inner, outer_stride, inner_stride)
    total = tl.zeros((ROWS, BLOCK), ACC)
    first = tl.zeros((ROWS, BLOCK), ACC)
    second = tl.zeros((ROWS, BLOCK), ACC)
    third = tl.zeros((ROWS, BLOCK), ACC)
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        mask = there & (column < WIDTH)
        value = tl.load(start + column, mask=mask, other=0.0).to(ACC)
        coming = tl.load(upstream + row * WIDTH + column, mask=mask, other=0.0).to(ACC)
        total += coming
        coming *= value
        first += coming
        coming *= value
        second += coming
        third += coming * value
    one = tl.load(factors + row * 3, mask=there, other=0.0)
    two = tl.load(factors + row * 3 + 1, mask=there, other=0.0)
    three = tl.load(factors + row * 3 + 2, mask=there, other=0.0)
    # along i: sum of upstream * x^i over the row, times the factor of that power
    along_one = tl.sum(first, 1)[:, None] * one
    along_two = tl.sum(second, 1)[:, None] * two
    along_three = tl.sum(third, 1)[:, None] * three
    tl.store(shares + row * 4, along_one, mask=there)
    tl.store(shares + row * 4 + 1, along_two, mask=there)
    tl.store(shares + row * 4 + 2, along_three, mask=there)
    tl.store(shares + row * 4 + 3, tl.sum(total, 1)[:, None], mask=there)
    # d y_j / d x_i = a n i x^(i-1) (delta_ij - x_i^p x_j^p n² / F) for each power p with weight a and factor n
    slope_one = one * tl.load(weight).to(ACC)
    slope_two = 2 * two * tl.load(weight + 1).to(ACC)
    slope_three = 3 * three * tl.load(weight + 2).to(ACC)
    along_one *= one / WIDTH
    along_two *= two / WIDTH
    along_three *= three / WIDTH
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)[None, :]
        mask = there & (column < WIDTH)
        value = tl.load(start + column, mask=mask, other=0.0).to(ACC)
        coming = tl.load(upstream + row * WIDTH + column, mask=mask, other=0.0).to(ACC)
        square = value * value
        found = slope_one * (coming - value * along_one)
        found += slope_two * value * (coming - square * along_two)
        found += slope_three * square * (coming - square * value * along_three)
        tl.store(for_x + row * WIDTH + column, rounded(found, for_x.dtype.element_ty), mask=mask)


def poly_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, element: str, mode: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, factors, elements, scales): y like x, factors [rows, 3] what each power was multiplied by."""
    layout, tile, acc = rows_of(x), _tile(x.shape[-1]), accumulator(x.dtype)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    factors = y.new_empty(layout.count, 3, dtype=acc)
    elements, scales = empty_output(y, element)
    if y.numel():
        _forward[(triton.cdiv(layout.count, tile.rows),)](
            layout.x,
            weight.contiguous(),
            bias,
            y,
            factors,
            elements,
            scales,
            layout.count,
            *layout.places,
            WIDTH=x.shape[-1],
            EPS=eps,
            ACC=triton_type(acc),
            ROWS=tile.rows,
            BLOCK=tile.block,
            ELEMENT=element,
            MODE=mode,
            BITS=bits_of(element),
            num_warps=tile.warps,
        )
    return y, factors, elements, scales


def poly_norm_backward(upstream: Tensor, x: Tensor, weight: Tensor, factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight [3] and bias [1], the latter in the dtype of the weight."""
    layout, tile = rows_of(x), _tile(x.shape[-1])
    for_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not for_x.numel():
        return for_x, torch.zeros_like(weight), weight.new_zeros(1)
    shares = factors.new_empty(layout.count, 4)
    _backward[(triton.cdiv(layout.count, tile.rows),)](
        upstream.contiguous(),
        layout.x,
        weight.contiguous(),
        factors,
        for_x,
        shares,
        layout.count,
        *layout.places,
        WIDTH=x.shape[-1],
        ACC=triton_type(factors.dtype),
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )
    total = add_shares(shares, weight.dtype)
    return for_x, total[:3].clone(), total[3:].clone()


def _tile(width: int) -> Tile:
    """8 elements a thread, half of what others take: three or four sums are beside them in the registers."""
    tile = piece_of(width)
    return Tile(tile.rows, tile.block, 2 * tile.warps)


def compilations() -> Iterator[Compilation]:
    """bfloat16 at a model's width."""
    names = dict.fromkeys(["upstream", "x", "weight", "bias", "y", "for_x"], "*bf16")
    names |= {"elements": "*u8", "scales": "*u8"}
    names |= {"factors": "*fp32", "shares": "*fp32", "rows": "i32", "inner": "i32"}
    names |= {"outer_stride": "i32", "inner_stride": "i32"}
    tile = _tile(14336)
    constants = {"inner": 1, "WIDTH": 14336, "ACC": tl.float32, "ROWS": tile.rows, "BLOCK": tile.block}
    aligned = ("outer_stride", "inner_stride")
    for element in ("", "e4m3"):
        output = {"ELEMENT": element, "MODE": "rceil", "BITS": bits_of(element)}
        yield Compilation(_forward, names, {**constants, "EPS": 1e-5, **output}, tile.warps, aligned)
    yield Compilation(_backward, names, constants, tile.warps, aligned)
    yield from share_compilations(4)
