"""SwiGLU and GEGLU over gate and up side by side: 6 bytes an element of bfloat16 forward, 10 backward, which are the least
there can be. Nothing is kept for backward but the input: the activation is computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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
from models.kernels.runtime.rows import accumulator, piece_of, rows_of, triton_type

ACTIVATIONS = ("silu", "gelu", "gelu_tanh")


@kernel
def _active(gate, ACTIVATION: tl.constexpr):
    """(value, slope) of an activation."""
    if ACTIVATION == "silu":
        share = 1 / (1 + tl.exp(-gate))
        value = gate * share
        slope = share * (1 + gate * (1 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
        value = gate * share
        slope = share + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    else:
        # (1 + tanh u) / 2 is the logistic function of 2 u, which loses nothing where tanh u is near -1
        square = gate * gate
        share = 1 / (1 + tl.exp(-1.5957691216057308 * gate * (1 + 0.044715 * square)))
        value = gate * share
        slope = share + gate * (share * (1 - share)) * (1.5957691216057308 * (1 + 0.134145 * square))
    return value, slope


@kernel
def _forward(
    x,
    y,
    elements,
    scales,
    rows,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ELEMENT: tl.constexpr,
    MODE: tl.constexpr,
    BITS: tl.constexpr,
):
    pieces: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    line = (tl.program_id(0) // pieces) * ROWS + tl.arange(0, ROWS)[:, None]
    row = line.to(tl.int64)
    first = tl.program_id(0) % pieces * BLOCK
    column = first + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < WIDTH)
    place = x + row_start(line, inner, outer_stride, inner_stride) + column
    gate = tl.load(place, mask=mask, other=0.0).to(ACC)
    up = tl.load(place + WIDTH, mask=mask, other=0.0).to(ACC)
    value, _ = _active(gate, ACTIVATION)
    found = rounded(value * up, y.dtype.element_ty)
    tl.store(y + row * WIDTH + column, found, mask=mask)
    if ELEMENT != "":
        store_output(elements, scales, found, row, first, row < rows, WIDTH, ELEMENT, MODE, BITS)


@kernel
def _backward(
    upstream,
    x,
    for_x,
    rows,
    inner,
    outer_stride,
    inner_stride,
    WIDTH: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pieces: tl.constexpr = (WIDTH + BLOCK - 1) // BLOCK
    line = (tl.program_id(0) // pieces) * ROWS + tl.arange(0, ROWS)[:, None]
    row = line.to(tl.int64)
    column = tl.program_id(0) % pieces * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (column < WIDTH)
    place = x + row_start(line, inner, outer_stride, inner_stride) + column
    gate = tl.load(place, mask=mask, other=0.0).to(ACC)
    up = tl.load(place + WIDTH, mask=mask, other=0.0).to(ACC)
    coming = tl.load(upstream + row * WIDTH + column, mask=mask, other=0.0).to(ACC)
    value, slope = _active(gate, ACTIVATION)
    target = for_x + row * (2 * WIDTH) + column
    tl.store(target, rounded(coming * up * slope, for_x.dtype.element_ty), mask=mask)
    tl.store(target + WIDTH, rounded(coming * value, for_x.dtype.element_ty), mask=mask)


def gated(x: Tensor, activation: str, element: str, mode: str) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., 2F] -> (y [..., F], its elements, its scales)."""
    y = torch.empty(*x.shape[:-1], x.shape[-1] // 2, dtype=x.dtype, device=x.device)
    output = empty_output(y, element)
    _launch(_forward, (), x, (y, *output), activation, ELEMENT=element, MODE=mode, BITS=bits_of(element))
    return y, *output


def gated_backward(upstream: Tensor, x: Tensor, activation: str) -> Tensor:
    """Gradient of x [..., 2F]."""
    for_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(_backward, (upstream.contiguous(),), x, (for_x,), activation)
    return for_x


def _launch(
    function: triton.JITFunction, before: tuple, x: Tensor, after: tuple, activation: str, **output: Any
) -> None:
    width, layout = x.shape[-1] // 2, rows_of(x)
    tile = piece_of(width)
    if x.numel():
        function[(triton.cdiv(layout.count, tile.rows) * triton.cdiv(width, tile.block),)](
            *before,
            layout.x,
            *after,
            layout.count,
            *layout.places,
            WIDTH=width,
            ACTIVATION=activation,
            ACC=triton_type(accumulator(x.dtype)),
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
            **output,
        )


def compilations() -> Iterator[Compilation]:
    """bfloat16 at a model's and at an expert's width."""
    names = {"upstream": "*bf16", "x": "*bf16", "y": "*bf16", "for_x": "*bf16", "rows": "i32", "inner": "i32"}
    names |= {"elements": "*u8", "scales": "*u8"}
    names |= {"outer_stride": "i32", "inner_stride": "i32"}
    for width, activation in ((14336, "silu"), (14336, "gelu"), (14336, "gelu_tanh"), (768, "silu")):
        tile = piece_of(width)
        constants = {"inner": 1, "WIDTH": width, "ACTIVATION": activation, "ACC": tl.float32}
        constants |= {"ROWS": tile.rows, "BLOCK": tile.block}
        for element in ("", "e4m3", "e2m1") if (width, activation) == (14336, "silu") else ("",):
            output = {"ELEMENT": element, "MODE": "rceil", "BITS": bits_of(element)}
            yield Compilation(_forward, names, {**constants, **output}, tile.warps, ("outer_stride", "inner_stride"))
        yield Compilation(_backward, names, constants, tile.warps, ("outer_stride", "inner_stride"))
