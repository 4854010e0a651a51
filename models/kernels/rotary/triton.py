"""Rotation of heads, in place or not: a program turns all heads of one token, on CPU of many, reading its angles once. 4 bytes
an element of bfloat16, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded
from models.kernels.runtime.rows import accumulator, triton_type

INTERPRETED = 256
"""Tokens of a program on CPU, where the interpreter pays by the program."""


@kernel
def _turn(
    x,
    target,
    cosine,
    sine,
    rows,
    batch,
    x_token,
    x_sample,
    x_head,
    target_token,
    target_sample,
    target_head,
    table_token,
    table_sample,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACK: tl.constexpr,
    ACC: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, within = tl.program_id(0), True
    if TOKENS > 1:
        row = row * TOKENS + tl.arange(0, TOKENS)[:, None, None]
        within = row < rows
    token, sample = (row // batch).to(tl.int64), (row % batch).to(tl.int64)
    column = tl.arange(0, BLOCK)[None, :]
    within = within & (column < HALF)
    angle = token * table_token + sample * table_sample + column
    left_cosine = tl.load(cosine + angle, mask=within, other=0.0).to(ACC)
    right_cosine = tl.load(cosine + angle + HALF, mask=within, other=0.0).to(ACC)
    left_sine = tl.load(sine + angle, mask=within, other=0.0).to(ACC)
    right_sine = tl.load(sine + angle + HALF, mask=within, other=0.0).to(ACC)
    if BACK:  # the transpose of a turn
        left_sine, right_sine = right_sine, left_sine
    for first in range(0, HEADS, TILE):
        head = first + tl.arange(0, TILE)[:, None]
        mask = (head < HEADS) & within
        place = x + token * x_token + sample * x_sample + head * x_head + column
        left = tl.load(place, mask=mask, other=0.0).to(ACC)
        right = tl.load(place + HALF, mask=mask, other=0.0).to(ACC)
        place = target + token * target_token + sample * target_sample + head * target_head + column
        turned = left * left_cosine + right * left_sine
        tl.store(place, rounded(turned, target.dtype.element_ty), mask=mask)
        turned = right * right_cosine + left * right_sine
        tl.store(place + HALF, rounded(turned, target.dtype.element_ty), mask=mask)


def turn(x: Tensor, target: Tensor, cosine: Tensor, sine: Tensor, back: bool) -> None:
    """Write the turned x [S, B, heads, D] to target, which is like it and may be x itself; their last dim has stride 1.
    cosine, sine: [S or 1, B or 1, 1, D]. back: the transpose of the turn."""
    tokens, samples, heads, width = x.shape
    if not x.numel():
        return
    cosine, sine = cosine.contiguous(), sine.contiguous()
    tile, block, warps = _tile(heads, width)
    table = [0 if size == 1 else stride for size, stride in zip(cosine.shape[:2], cosine.stride()[:2], strict=True)]
    together = 1 if x.is_cuda else INTERPRETED
    _turn[(triton.cdiv(tokens * samples, together),)](
        x,
        target,
        cosine,
        sine,
        tokens * samples,
        samples,
        *x.stride()[:3],
        *target.stride()[:3],
        *table,
        HEADS=heads,
        HALF=width // 2,
        BACK=back,
        ACC=triton_type(accumulator(x.dtype)),
        TOKENS=together,
        TILE=tile,
        BLOCK=block,
        num_warps=warps,
    )


def _tile(heads: int, width: int) -> tuple[int, int, int]:
    """(heads at a time, columns, warps): heads by a power of two that divides them, so that no thread is idle; 8 elements of
    each half a thread."""
    tile, block = min(16, max(4, heads & -heads)), max(8, triton.next_power_of_2(width // 2))
    return tile, block, max(1, min(8, tile * block // 256))


def compilations() -> Iterator[Compilation]:
    """Query and key heads of models with 40 and 64 of them, in place and back."""
    strides = ("x_token", "x_sample", "x_head", "target_token", "target_sample", "target_head", "table_token")
    names = dict.fromkeys(("x", "target", "cosine", "sine"), "*bf16")
    names |= dict.fromkeys((*strides, "rows", "batch", "table_sample"), "i32")
    for heads, width, back in ((40, 128, False), (64, 128, True), (12, 64, False)):
        tile, block, warps = _tile(heads, width)
        constants = {"HEADS": heads, "HALF": width // 2, "BACK": back, "ACC": tl.float32}
        constants |= {"TOKENS": 1, "TILE": tile, "BLOCK": block}
        yield Compilation(_turn, names, constants, warps, (*strides, "table_sample"))


def empty_like(x: Tensor) -> Tensor:
    """Contiguous memory of the shape and dtype of x."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
