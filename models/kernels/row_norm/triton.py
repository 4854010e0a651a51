"""LayerNorm and RMSNorm, which is LayerNorm without mean and bias, forward and backward in one pass over memory each;
backward in two for rows of more than 8,192 elements (`wide.py`).

A program holds whole rows in registers, so x is read once: 4 bytes an element of bfloat16 forward, 6 backward, which are the
least there can be. Backward is run by at most `PROGRAMS` programs that go over the rows in strides, each with its share of the
weight's gradient in registers; a second small kernel adds the shares. The next rows are fetched while the present ones are
reduced (`num_stages`), since so few programs must keep all of memory busy. How many there are follows from the shape, not
from the GPU, so that every GPU gives the same bits: 256 is just below two a multiprocessor of an H100 or H200 (132), whose
registers hold two of them, and their shares are 1 to 2 % of what backward reads.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.mx_output import bits_of, empty_output
from models.kernels.mx_output.device import store_output
from models.kernels.row_norm import WIDEST
from models.kernels.row_norm.wide import column_compilation, weight_gradients
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.places import row_start
from models.kernels.runtime.rounding import rounded
from models.kernels.runtime.rows import accumulator, rows_of, tile_of, triton_type
from models.kernels.runtime.shares import MOST as PROGRAMS
from models.kernels.runtime.shares import add_shares, share_compilations

NARROW = 8192
"""Beyond it a row, its gradient and the weight's share do not fit into a multiprocessor's registers backward."""


@kernel
def _forward(
    x,
    residual,
    weight,
    bias,
    y,
    stream,
    mean,
    scale,
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
    CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ELEMENT: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
):
    line = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    row = line.to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    there, within = row < rows, column < WIDTH
    mask = there & within
    place = row * WIDTH + column
    value = tl.load(x + row_start(line, inner, outer_stride, inner_stride) + column, mask=mask, other=0.0)
    wide = value.to(ACC)
    if HAS_RESIDUAL:
        # the sum is rounded before it is normed: backward reads it from memory
        value = rounded(wide + tl.load(residual + place, mask=mask, other=0.0).to(ACC), y.dtype.element_ty)
        tl.store(stream + place, value, mask=mask)
        wide = value.to(ACC)
    if CENTRED:
        centre = tl.sum(wide, 1)[:, None] / WIDTH
        wide = tl.where(within, wide - centre, 0.0)
        tl.store(mean + row, centre, mask=there)
    factor = 1 / tl.sqrt(tl.sum(wide * wide, 1)[:, None] / WIDTH + EPS)
    tl.store(scale + row, factor, mask=there)
    found = wide * factor * tl.load(weight + column, mask=within, other=0.0).to(ACC)
    if HAS_BIAS:
        found += tl.load(bias + column, mask=within, other=0.0).to(ACC)
    value = rounded(found, y.dtype.element_ty)
    tl.store(y + place, value, mask=mask)
    if ELEMENT != "":
        store_output(elements, scales, value, row, 0, there, WIDTH, ELEMENT, MODE, BITS)


@kernel
def _backward(
    upstream,
    through,
    x,
    weight,
    mean,
    scale,
    for_x,
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
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_THROUGH: tl.constexpr,
    HAS_SHARES: tl.constexpr,
):
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)[None, :]
    within = column < WIDTH
    if HAS_SHARES:
        gain = tl.load(weight + column, mask=within, other=0.0)
    for_weight = tl.zeros((ROWS, BLOCK), ACC)
    for_bias = tl.zeros((ROWS, BLOCK), ACC)
    for tile in tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        line = tile * ROWS + tl.arange(0, ROWS)[:, None]
        row = line.to(tl.int64)
        there = row < rows
        mask = there & within
        place = row * WIDTH + column
        start = row_start(line, inner, outer_stride, inner_stride)
        normal = tl.load(x + start + column, mask=mask, other=0.0).to(ACC)
        coming = tl.load(upstream + place, mask=mask, other=0.0).to(ACC)
        factor = tl.load(scale + row, mask=there, other=0.0)
        if CENTRED:
            normal = tl.where(within, normal - tl.load(mean + row, mask=there, other=0.0), 0.0)
        normal *= factor
        if not HAS_SHARES:  # one row a program: nothing to keep it for, and no register to keep it in
            gain = tl.load(weight + column, mask=within, other=0.0)
        gained = coming * gain.to(ACC)
        if HAS_SHARES:
            for_weight += coming * normal
            if HAS_BIAS:
                for_bias += coming
        found = gained - normal * (tl.sum(gained * normal, 1)[:, None] / WIDTH)
        if CENTRED:
            found -= tl.sum(gained, 1)[:, None] / WIDTH
        found *= factor
        if HAS_THROUGH:
            found += tl.load(through + place, mask=mask, other=0.0).to(ACC)
        tl.store(for_x + place, rounded(found, for_x.dtype.element_ty), mask=mask)
    if HAS_SHARES:
        share = program * WIDTH + column
        tl.store(weight_shares + share, tl.sum(for_weight, 0)[None, :], mask=within)
        if HAS_BIAS:
            tl.store(bias_shares + share, tl.sum(for_bias, 0)[None, :], mask=within)


def norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    centred: bool,
    element: str,
    mode: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, stream, mean, factor, elements, scales) of x [..., N]; see `models.kernels.row_norm`."""
    acc = accumulator(x.dtype)
    layout = rows_of(x if residual is None else x.contiguous())
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    stream = torch.empty_like(y) if residual is not None else y.new_empty(0)
    scale = y.new_empty(layout.count, dtype=acc)
    mean = torch.empty_like(scale) if centred else scale.new_empty(0)
    elements, scales = empty_output(y, element)
    tile = tile_of(x.shape[-1])
    if y.numel():
        _forward[(triton.cdiv(layout.count, tile.rows),)](
            layout.x,
            y if residual is None else residual.contiguous(),
            weight,
            weight if bias is None else bias,
            y,
            stream,
            mean,
            scale,
            elements,
            scales,
            layout.count,
            *layout.places,
            WIDTH=x.shape[-1],
            EPS=eps,
            ACC=triton_type(acc),
            ROWS=tile.rows,
            BLOCK=tile.block,
            CENTRED=centred,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            ELEMENT=element,
            MODE=mode,
            BITS=bits_of(element),
            num_warps=tile.warps,
        )
    return y, stream, mean, scale, elements, scales


def norm_backward(
    upstream: Tensor, through: Tensor | None, x: Tensor, weight: Tensor, has_bias: bool, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty without one). through: gradient that reached the stream by another way."""
    width, layout, tile = x.shape[-1], rows_of(x), tile_of(x.shape[-1])
    for_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not for_x.numel():
        return for_x, torch.zeros_like(weight), torch.zeros_like(weight) if has_bias else weight.new_empty(0)
    upstream, narrow = upstream.contiguous(), tile.block <= NARROW
    programs = triton.cdiv(layout.count, tile.rows)
    programs = min(PROGRAMS, programs) if narrow else programs
    weight_shares = scale.new_empty(programs if narrow else 0, width)
    bias_shares = torch.empty_like(weight_shares) if has_bias else scale.new_empty(0)
    _backward[(programs,)](
        upstream,
        upstream if through is None else through.contiguous(),
        layout.x,
        weight,
        mean,
        scale,
        for_x,
        weight_shares,
        bias_shares,
        layout.count,
        *layout.places,
        WIDTH=width,
        ACC=triton_type(scale.dtype),
        ROWS=tile.rows,
        BLOCK=tile.block,
        STAGES=stages(tile.rows * tile.block * x.element_size(), mean.numel() > 0),
        CENTRED=mean.numel() > 0,
        HAS_BIAS=has_bias,
        HAS_THROUGH=through is not None,
        HAS_SHARES=narrow,
        num_warps=tile.warps,
    )
    if not narrow:
        return for_x, *weight_gradients(upstream, layout, mean, scale, has_bias, weight.dtype)
    for_bias = add_shares(bias_shares, weight.dtype) if has_bias else weight.new_empty(0)
    return for_x, add_shares(weight_shares, weight.dtype), for_bias


def stages(size: int, centred: bool) -> int:
    """Tiles of `size` bytes in flight, of each of two or three tensors. With three, LayerNorm's address arithmetic passes 128
    registers, and only one program of 4,096 columns would fit on a multiprocessor; an A100 has 160 KiB of shared memory."""
    if size >= 32768:
        return 1
    return 2 if centred or size > 16384 else 3


def norm_compilations(centred: bool) -> Iterator[Compilation]:
    """bfloat16 at a head's, a model's and the widest width; MX output, which is the same for both, with RMSNorm alone."""
    for width, residual in ((128, False), (4096, True), (NARROW, True), (WIDEST, True)):
        tile = tile_of(width)
        shared = {"WIDTH": width, "ACC": tl.float32, "ROWS": tile.rows, "BLOCK": tile.block, "CENTRED": centred}
        shared |= {"HAS_BIAS": centred} | ({"inner": 1} if width > 128 else {})
        names = dict.fromkeys(
            ["x", "residual", "weight", "bias", "y", "stream", "upstream", "through", "for_x"], "*bf16"
        )
        names |= dict.fromkeys(["mean", "scale", "weight_shares", "bias_shares"], "*fp32")
        names |= {"elements": "*u8", "scales": "*u8"}
        names |= {"rows": "i32", "inner": "i32", "outer_stride": "i32", "inner_stride": "i32"}
        aligned = ("outer_stride", "inner_stride")
        depth = stages(tile.rows * tile.block * 2, centred)
        forward = {**shared, "EPS": 1e-5, "HAS_RESIDUAL": residual}
        for element in ("", "e4m3", "e3m2", "e2m1") if width == 4096 and not centred else ("",):
            output = {"ELEMENT": element, "MODE": "rceil", "BITS": bits_of(element)}
            yield Compilation(_forward, names, {**forward, **output}, tile.warps, aligned)
        backward = {**shared, "STAGES": depth, "HAS_THROUGH": residual, "HAS_SHARES": width <= NARROW}
        yield Compilation(_backward, names, backward, tile.warps, aligned)
    yield column_compilation(WIDEST, centred)
    yield from share_compilations(4096)
