"""Cross entropy of logits as Triton functions: two bytes of a bfloat16 logit are read forward, two read and two written
backward, and nothing else is.

A row of 128256 bfloat16 is 256 KB, more than an SM holds, so a program walks along it in blocks and keeps the largest logit and
the sum of powers so far (Milakov and Gimelshein, arXiv 1805.02867). They are scalars: kept for each lane apart they would need
no reduction in a block, but a second exponential of each logit, and at the rate of memory one is what an SM can do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.kernels.cross_entropy.vocabulary import Place, Terms, accumulated_in
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel
from models.kernels.runtime.rounding import rounded

WIDEST = 8192
"""Logits of a block: with 8 warps four accesses of 16 bytes a thread are under way at once, and four programs fit an SM."""


@kernel
def scan_row(row, vocab, BLOCK: tl.constexpr, SUM: tl.constexpr, WIDE: tl.constexpr):
    """(the largest, the sum of exp(logit - largest), the sum if SUM) of the `vocab` logits at the pointer `row`."""
    largest = tl.full((), float("-inf"), WIDE)
    powers = tl.full((), 0.0, WIDE)
    total = tl.full((), 0.0, WIDE)
    for start in range(0, vocab, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(row + at, mask=at < vocab, other=float("-inf")).to(WIDE)
        highest = tl.maximum(largest, tl.max(x, 0))
        shift = tl.where(highest == float("-inf"), 0.0, highest)  # -inf - -inf is not a number
        powers = powers * tl.exp(largest - shift) + tl.sum(tl.exp(x - shift), 0)
        largest = highest
        if SUM:
            total += tl.sum(tl.where(at < vocab, x, 0.0), 0)
    return largest, powers, total


@kernel
def loss_of(largest, powers, total, target, vocab, Z: tl.constexpr, SMOOTHING: tl.constexpr):
    """(loss, lse) of a whole row; target: its logit."""
    lse = tl.where(largest == float("-inf"), 0.0, largest) + tl.log(powers)
    loss = lse - target
    if SMOOTHING > 0:
        loss = lse - (1 - SMOOTHING) * target - total * SMOOTHING / vocab
    if Z > 0:
        loss += Z * lse * lse
    return loss, lse


@kernel
def gradient_of(x, at, target, lse, scale, size, Z: tl.constexpr, SMOOTHING: tl.constexpr):
    """The gradient by logits x at the columns `at`, times scale."""
    found = tl.exp(x - lse) * (scale * (1 + 2 * Z * lse))
    if SMOOTHING > 0:
        found -= scale * SMOOTHING / size
    return tl.where(at == target, found - scale * (1 - SMOOTHING), found)


@kernel
def _losses(
    logits, targets, losses, lses, stride, vocab,
    Z: tl.constexpr, SMOOTHING: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program a row, of whole rows."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride
    target = tl.load(row + tl.load(targets + index)).to(WIDE)
    largest, powers, total = scan_row(row, vocab, BLOCK, SMOOTHING > 0, WIDE)
    loss, lse = loss_of(largest, powers, total, target, vocab, Z, SMOOTHING)
    tl.store(losses + index, loss)
    tl.store(lses + index, lse)


@kernel
def _statistics(
    logits, targets, found, stride, rows, vocab, first,
    SUM: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program a row, of a share of it: found [4, rows]."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * stride
    target = tl.load(targets + index) - first
    here = (target >= 0) & (target < vocab)
    logit = tl.load(row + target, mask=here, other=0.0).to(WIDE)
    largest, powers, total = scan_row(row, vocab, BLOCK, SUM, WIDE)
    tl.store(found + index, largest)
    tl.store(found + rows + index, powers)
    tl.store(found + 2 * rows + index, logit)
    tl.store(found + 3 * rows + index, total)


@kernel
def _gradient(
    logits, targets, lses, scales, out, stride, out_stride, vocab, first, size,
    Z: tl.constexpr, SMOOTHING: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One program a block of a row: nothing is carried from one to the next."""
    index = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(targets + index) - first
    lse, scale = tl.load(lses + index), tl.load(scales + index)
    x = tl.load(logits + index.to(tl.int64) * stride + at, mask=at < vocab, other=0.0).to(WIDE)
    found = gradient_of(x, at, target, lse, scale, size, Z, SMOOTHING)
    place = out + index.to(tl.int64) * out_stride + at
    tl.store(place, rounded(found, out.dtype.element_ty), mask=at < vocab)


def losses(logits: Tensor, targets: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """As `RowFunctions.losses`."""
    rows, vocab = logits.shape
    loss, lse = (logits.new_empty(rows, dtype=accumulated_in(logits.dtype)) for _ in range(2))
    if rows:
        _losses[(rows,)](
            logits, targets, loss, lse, logits.stride(0), vocab,
            Z=terms.z_loss, SMOOTHING=terms.label_smoothing, **sizes(logits),
        )  # fmt: skip
    return loss, lse


def statistics(logits: Tensor, targets: Tensor, place: Place, terms: Terms) -> Tensor:
    """As `RowFunctions.statistics`."""
    rows, vocab = logits.shape
    found = logits.new_empty(4, rows, dtype=accumulated_in(logits.dtype))
    if rows:
        _statistics[(rows,)](
            logits, targets, found, logits.stride(0), rows, vocab, place.first,
            SUM=terms.label_smoothing > 0, **sizes(logits),
        )  # fmt: skip
    return found


def gradient(
    logits: Tensor, targets: Tensor, lse: Tensor, scale: Tensor, place: Place, terms: Terms, out: Tensor
) -> None:
    """As `RowFunctions.gradient`."""
    rows, vocab = logits.shape
    how = sizes(logits)
    if rows:
        _gradient[(rows, triton.cdiv(vocab, how["BLOCK"]))](
            logits, targets, lse, scale, out, logits.stride(0), out.stride(0), vocab, place.first, place.size,
            Z=terms.z_loss, SMOOTHING=terms.label_smoothing, **how,
        )  # fmt: skip


def sizes(logits: Tensor, widest: int = WIDEST, warps: int = 8) -> dict[str, Any]:
    """How rows of logits are cut, and by how many warps a block of the widest is worked on; at least 16 logits a thread."""
    block = min(widest, triton.next_power_of_2(logits.shape[1]))
    wide = tl.float64 if logits.dtype == torch.float64 else tl.float32
    return {"BLOCK": block, "WIDE": wide, "num_warps": max(1, min(warps, block // 512))}


def compilations() -> Iterator[Compilation]:
    """Llama 3's vocabulary, whole and cut in eight."""
    share = {"logits": "*bf16", "targets": "*i64", "stride": "i32", "vocab": "i32"}
    wide, aligned = {"BLOCK": WIDEST, "WIDE": tl.float32}, ("stride", "out_stride", "vocab", "first", "size")
    for z, smoothing in ((0.0, 0.0), (1e-4, 0.1)):
        terms = {"Z": z, "SMOOTHING": smoothing}
        yield Compilation(_losses, share | {"losses": "*fp32", "lses": "*fp32"}, terms | wide, 8, aligned)
        pointers = {"lses": "*fp32", "scales": "*fp32", "out": "*bf16"}
        numbers = dict.fromkeys(("out_stride", "first", "size"), "i32")
        yield Compilation(_gradient, share | pointers | numbers, terms | wide, 8, aligned)
    counts = {"found": "*fp32", "rows": "i32", "first": "i32"}
    yield Compilation(_statistics, share | counts, {"SUM": True} | wide, 8, aligned)
