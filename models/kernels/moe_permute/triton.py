"""Copies of tokens in the order of their experts, and their weighted sums, as Triton functions: each moves every row once.

A program has a row, whole or a block of it of 16 numbers a thread: rows are a few KB, so whatever order they come in, they are
read and written in long pieces. Sums over a token's choices gather their rows, in float32, where scattering would need atomics,
and so another order in each run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded

WIDEST = 2048
"""Numbers of a block: 4 warps with two accesses of 16 bytes a thread each."""


@kernel
def _gather(
    tokens, rows, out, choices, stride, width,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i] = tokens[rows[i] / K], or 0 where no choice stands: one program a block of a row."""
    index = tl.program_id(0)
    choice = tl.load(rows + index)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = tl.where(choice < choices, width, 0)
    x = tl.load(tokens + (choice // TOP_K).to(tl.int64) * stride + at, mask=at < here, other=0)
    tl.store(out + index.to(tl.int64) * width + at, x, mask=at < width)


@kernel
def _sum(
    held, place, weights, out, rows, stride, width,
    WEIGHTED: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out[n] = sum over k of weights[n, k] held[place[n, k]], of those that have a row: one program a block of a token."""
    token = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), WIDE)
    for k in tl.static_range(TOP_K):
        row = tl.load(place + token.to(tl.int64) * TOP_K + k)
        here = tl.where(row < rows, width, 0)
        x = tl.load(held + row * stride + at, mask=at < here, other=0).to(WIDE)
        if WEIGHTED:
            x *= tl.load(weights + token.to(tl.int64) * TOP_K + k).to(WIDE)
        total += x
    tl.store(out + token.to(tl.int64) * width + at, rounded(total, out.dtype.element_ty), mask=at < width)


@kernel
def _weighted_gradients(
    gradient, held, weights, rows, out, dots, choices, stride, held_stride, width,
    TOP_K: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """out[i] = weight of the row's choice x gradient of its token, and the choice's dot = gradient of its token · held[i]: one
    program a row, so that each dot is one program's sum."""
    index = tl.program_id(0)
    choice = tl.load(rows + index)
    there = choice < choices
    here = tl.where(there, width, 0)
    weight = tl.load(weights + choice, mask=there, other=0).to(WIDE)
    token = gradient + (choice // TOP_K).to(tl.int64) * stride
    row = index.to(tl.int64)
    total = tl.zeros((BLOCK,), WIDE)
    for start in range(0, width, BLOCK):
        at = start + tl.arange(0, BLOCK)
        upstream = tl.load(token + at, mask=at < here, other=0).to(WIDE)
        result = tl.load(held + row * held_stride + at, mask=at < here, other=0).to(WIDE)
        total += upstream * result
        tl.store(out + row * width + at, rounded(upstream * weight, out.dtype.element_ty), mask=at < width)
    tl.store(dots + choice, tl.sum(total, 0), mask=there)


def gather(tokens: Tensor, rows: Tensor, choices: int, top_k: int) -> Tensor:
    """[N, H] -> [R, H]."""
    out = tokens.new_empty(rows.shape[0], tokens.shape[1])
    how = _sizes(tokens)
    if out.numel():
        _gather[(rows.shape[0], triton.cdiv(tokens.shape[1], how["BLOCK"]))](
            tokens, rows, out, choices, tokens.stride(0), tokens.shape[1],
            TOP_K=top_k, BLOCK=how["BLOCK"], num_warps=how["num_warps"],
        )  # fmt: skip
    return out


def summed(held: Tensor, place: Tensor, weights: Tensor | None, top_k: int) -> Tensor:
    """[R, H] -> [N, H]."""
    width = held.shape[1]
    out = held.new_empty(place.shape[0] // top_k, width)
    how = _sizes(held)
    if out.numel():
        _sum[(out.shape[0], triton.cdiv(width, how["BLOCK"]))](
            held, place, weights, out, held.shape[0], held.stride(0), width,
            WEIGHTED=weights is not None, TOP_K=top_k, **how,
        )  # fmt: skip
    return out


def weighted_gradients(
    gradient: Tensor, held: Tensor, weights: Tensor, rows: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """Gradients of `summed` by held [R, H] and weights [N x K]."""
    how = _sizes(held)
    out = torch.empty(held.shape, dtype=held.dtype, device=held.device)
    wide = torch.float64 if held.dtype == torch.float64 else torch.float32
    dots = torch.zeros(weights.shape, dtype=wide, device=held.device)
    if out.numel():
        _weighted_gradients[(held.shape[0],)](
            gradient, held, weights, rows, out, dots, weights.shape[0], gradient.stride(0), held.stride(0), held.shape[1],
            TOP_K=top_k, **how,
        )  # fmt: skip
    return out, dots.to(weights.dtype)


def _sizes(x: Tensor) -> dict[str, Any]:
    block = min(WIDEST, triton.next_power_of_2(x.shape[1]))
    return {
        "BLOCK": block,
        "WIDE": tl.float64 if x.dtype == torch.float64 else tl.float32,
        "num_warps": max(1, min(4, block // 512)),
    }


def compilations() -> Iterator[Compilation]:
    """A hidden size of 4096, 8 choices a token, as of DeepSeek-V3 and Qwen3."""
    common, aligned = {"TOP_K": 8, "BLOCK": WIDEST}, ("stride", "held_stride", "width")
    numbers = {"stride": "i32", "width": "i32"}
    pointers = {"tokens": "*bf16", "rows": "*i64", "out": "*bf16", "choices": "i32"}
    yield Compilation(_gather, pointers | numbers, common, 4, aligned)
    wide = common | {"WIDE": tl.float32}
    for weighted in (False, True):
        pointers = {"held": "*bf16", "place": "*i64", "weights": "*fp32", "out": "*bf16", "rows": "i32"}
        constants = wide | {"WEIGHTED": weighted} | ({} if weighted else {"weights": None})
        yield Compilation(_sum, pointers | numbers, constants, 4, aligned)
    pointers = {
        "gradient": "*bf16",
        "held": "*bf16",
        "weights": "*fp32",
        "rows": "*i64",
        "out": "*bf16",
        "dots": "*fp32",
    }
    yield Compilation(
        _weighted_gradients, pointers | numbers | {"choices": "i32", "held_stride": "i32"}, wide, 4, aligned
    )
