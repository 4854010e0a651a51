"""Rotation in one pass: a tile is read once, goes through its butterflies, and is written with the rotated dimension last,
whichever it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.mx_quantize.device import widened
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rows import in_memory

TILE = 4096
"""Elements of a tile: 32 a thread."""

INTERPRETED = 1 << 16
"""On CPU, where the interpreter pays by the program."""


@kernel
def _level(x, HALF: tl.constexpr):
    """Sums and differences of elements that lie HALF apart."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1]
    pairs = tl.permute(tl.reshape(x, (rows, columns // (2 * HALF), 2, HALF)), (0, 1, 3, 2))
    first, second = tl.split(pairs)
    pairs = tl.permute(tl.join(first + second, first - second), (0, 1, 3, 2))
    return tl.reshape(pairs, (rows, columns))


@kernel
def butterflies(x, GROUP: tl.constexpr):
    """float32 [R, N] with groups of GROUP along rows, times the Hadamard matrix of ones."""
    for level in tl.static_range(10):
        if (1 << level) < GROUP:
            x = _level(x, 1 << level)
    return x


@kernel
def rotate_tile(
    x, signs, out, factor, lines, size, inner,
    GROUP: tl.constexpr, SIGNED: tl.constexpr, TURNED: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """HEIGHT of `lines` and WIDTH of their `size` elements, rotated. Lines lie in memory; TURNED, `inner` lines that lie beside
    one another are a matrix [size, inner] of a batch."""
    high = tl.cdiv(inner if TURNED else lines, HEIGHT)
    top, left = (tl.program_id(0) % high) * HEIGHT, (tl.program_id(0) // high) * WIDTH
    line, column = top + tl.arange(0, HEIGHT), left + tl.arange(0, WIDTH)
    if TURNED:
        before = tl.cast(tl.program_id(1), tl.int64) * inner * size
        mask = (column < size)[:, None] & (line < inner)[None, :]
        place = before + column.to(tl.int64)[:, None] * inner + line[None, :]
        values = tl.trans(widened(tl.load(x + place, mask=mask, other=0.0)))
        within = (line < inner)[:, None] & (column < size)[None, :]
    else:
        before = tl.cast(0, tl.int64)
        within = (line < lines)[:, None] & (column < size)[None, :]
        place = line.to(tl.int64)[:, None] * size + column[None, :]
        values = widened(tl.load(x + place, mask=within, other=0.0))
    if SIGNED:
        values = values * tl.load(signs + column % GROUP)[None, :]
    values = butterflies(values, GROUP) * factor
    tl.store(out + before + line.to(tl.int64)[:, None] * size + column[None, :], values, mask=within)


def rotate(x: Tensor, dim: int, size: int, signs: Tensor | None) -> Tensor:
    """x rotated along `dim`, not negative, which comes last: float32, contiguous."""
    found = torch.empty(x.movedim(dim, -1).shape, dtype=torch.float32, device=x.device)
    x, dim = in_memory(x, dim)
    outer, length, inner = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
    if not x.numel():
        return found
    turned = inner > 1
    lines = inner if turned else outer
    tile, widest = (TILE, 64 if turned else 256) if x.is_cuda else (INTERPRETED, INTERPRETED)
    width = max(size, min(triton.next_power_of_2(length), widest))
    height = max(1, min(tile // width, triton.next_power_of_2(lines)))
    grid = (triton.cdiv(lines, height) * triton.cdiv(length, width), outer if turned else 1)
    rotate_tile[grid](
        x, found if signs is None else signs.to(torch.float32), found, 1 / math.sqrt(size), lines, length, inner,
        size, signs is not None, turned, height, width, num_warps=max(1, min(8, height * width // 1024)),
    )  # fmt: skip
    return found


def compilations() -> Iterator[Compilation]:
    """Activations of 16384 tokens, 4096 wide, in bfloat16, along features and along tokens."""
    signature = {"x": "*bf16", "signs": "*fp32", "out": "*fp32", "factor": "fp32"}
    signature |= dict.fromkeys(("lines", "size", "inner"), "i32")
    for group, turned in ((64, False), (64, True), (16, False), (1024, False), (1024, True)):
        width = max(group, 64 if turned else 256)
        constants = {"GROUP": group, "SIGNED": True, "TURNED": turned, "HEIGHT": TILE // width, "WIDTH": width}
        yield Compilation(rotate_tile, signature, constants, 4, ("size", "inner"))
