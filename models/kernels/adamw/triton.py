"""AdamW over all tensors in one launch: every byte is read once and written once.

A program takes a chunk of one tensor in blocks of 4 elements a thread: float32 moves in 16 bytes, 16-bit tensors in 8, all in
one layout (8 elements took 98 to 166 registers; 4 take 54 to 110). At 64 registers 1024 threads of a multiprocessor have 64 kB
under way. What a step computes for an element, a root, a division and some forty other operations,
takes less time than its 28 bytes do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton.language as tl
from torch import Tensor

from models.kernels.adamw.scalars import Scalars
from models.kernels.adamw.tables import CHUNK, COLUMNS, Tables
from models.kernels.runtime.compiling import Compilation
from models.kernels.runtime.jit import kernel

BLOCK = 1024
WARPS = 8


@kernel
def _mix(x):
    """32 bits into 32 others, as `models.formats.random` does."""
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0x735A2D97
    return x ^ (x >> 15)


@kernel
def _random(row, first, offsets, RECTANGLES: tl.constexpr):
    """Random bits, uint32, of elements first + offsets of a tensor: `models.formats.random.bits` of their global index."""
    key, base = tl.load(row + 6), tl.load(row + 7)
    if RECTANGLES:
        width, pitch = tl.load(row + 8), tl.load(row + 9)
        # 64-bit division once a program; per element a 32-bit one
        along = (first % width).to(tl.int32) + offsets
        width = width.to(tl.int32)
        index = base + (first // width + along // width) * pitch + along % width
    else:
        index = base + first + offsets
    found = _mix(index.to(tl.uint32) ^ key.to(tl.uint32))
    return _mix(found ^ (key >> 32).to(tl.uint32) ^ _mix((index >> 32).to(tl.uint32)))


@kernel
def _bf16(x, low):
    """float32 to bfloat16 by adding `low`, uint32, below the last place and cutting; NaN stays NaN. In integers, since the
    interpreter's cast cuts. The last shift leaves nothing below, so the cast has nothing to round."""
    found = x.to(tl.uint32, bitcast=True)
    found = tl.where(x != x, found | 0x400000, found + low) & 0xFFFF0000
    return found.to(tl.float32, bitcast=True).to(tl.bfloat16)


@kernel
def _nearest_even(x):
    found = x.to(tl.uint32, bitcast=True)
    return _bf16(x, 0x7FFF + ((found >> 16) & 1))


@kernel
def _address(row, column: tl.constexpr, first, KIND: tl.constexpr, MASKED: tl.constexpr):
    """Pointer to element `first` of the tensor in a column of the table; where nothing is masked it is known to be aligned."""
    found = tl.load(row + column).to(tl.pointer_type(KIND)) + first
    return found if MASKED else tl.multiple_of(found, 16)


@kernel
def _get(pointers, mask, MASKED: tl.constexpr):
    if MASKED:
        return tl.load(pointers, mask=mask, other=0.0)
    return tl.load(pointers)


@kernel
def _put(pointers, value, mask, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointers, value, mask=mask)
    else:
        tl.store(pointers, value)


@kernel
def _chunk(
    row, first, size, factor, beta2, rest1, rest2, keep, rate, inverse_root, epsilon,
    MASKED: tl.constexpr, GRADIENT: tl.constexpr, STOCHASTIC: tl.constexpr, SHADOW: tl.constexpr,
    RECTANGLES: tl.constexpr, STATISTICS: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Step a chunk. Returns its sums of squares: of the change, of the new parameter."""
    NARROW: tl.constexpr = tl.bfloat16 if STOCHASTIC else tl.float32
    GIVEN: tl.constexpr = tl.bfloat16 if GRADIENT == "bf16" else tl.float32
    parameters = _address(row, 0, first, NARROW, MASKED)
    gradients = _address(row, 1, first, GIVEN, MASKED)
    averages = _address(row, 2, first, tl.float32, MASKED)
    squares = _address(row, 3, first, tl.float32, MASKED)
    lane = tl.arange(0, BLOCK)
    changes, sizes = tl.full([BLOCK], 0.0, tl.float32), tl.full([BLOCK], 0.0, tl.float32)
    for start in range(0, CHUNK, BLOCK):
        some = first + start < size if MASKED else True
        if some:
            offsets = start + lane
            mask = first + offsets < size
            g = _get(gradients + offsets, mask, MASKED).to(tl.float32) * factor
            m = _get(averages + offsets, mask, MASKED)
            v = _get(squares + offsets, mask, MASKED)
            p = _get(parameters + offsets, mask, MASKED).to(tl.float32)
            m = m + (g - m) * rest1
            v = v * beta2 + g * rest2 * g
            new = p * keep - tl.div_rn(m * rate, tl.sqrt_rn(v) * inverse_root + epsilon)
            _put(averages + offsets, m, mask, MASKED)
            _put(squares + offsets, v, mask, MASKED)
            if STOCHASTIC:
                low = _random(row, first, offsets, RECTANGLES) & 0xFFFF
                _put(parameters + offsets, _bf16(new, low), mask, MASKED)
            else:
                _put(parameters + offsets, new, mask, MASKED)
            if SHADOW:
                copies = _address(row, 4, first, tl.bfloat16, MASKED)
                _put(copies + offsets, _nearest_even(new), mask, MASKED)
            if STATISTICS:
                inside = tl.where(mask, new, 0.0)
                change = inside - tl.where(mask, p, 0.0)
                changes += change * change
                sizes += inside * inside
    return tl.sum(changes), tl.sum(sizes)


@kernel
def _adamw(
    rows, chunks, factor, partials, beta2, rest1, rest2, keep, rate, inverse_root, epsilon,
    GRADIENT: tl.constexpr, STOCHASTIC: tl.constexpr, SHADOW: tl.constexpr, RECTANGLES: tl.constexpr,
    STATISTICS: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program: one chunk. The compiler widens accesses only where it knows addresses to be aligned and no mask to cut them, so
    whole chunks of aligned tensors, nearly all there are, have code of their own."""
    chunk = tl.load(chunks + tl.program_id(0))
    row = rows + (chunk >> 32) * COLUMNS
    first, size = (chunk & 0xFFFFFFFF) * CHUNK, tl.load(row + 5)
    clip = tl.load(factor)
    addresses = tl.load(row) | tl.load(row + 1) | tl.load(row + 2) | tl.load(row + 3) | tl.load(row + 4)
    if (first + CHUNK <= size) & (addresses % 16 == 0):
        changed, squared = _chunk(
            row, first, size, clip, beta2, rest1, rest2, keep, rate, inverse_root, epsilon,
            False, GRADIENT, STOCHASTIC, SHADOW, RECTANGLES, STATISTICS, CHUNK, BLOCK,
        )  # fmt: skip
    else:
        changed, squared = _chunk(
            row, first, size, clip, beta2, rest1, rest2, keep, rate, inverse_root, epsilon,
            True, GRADIENT, STOCHASTIC, SHADOW, RECTANGLES, STATISTICS, CHUNK, BLOCK,
        )  # fmt: skip
    if STATISTICS:
        tl.store(partials + 2 * tl.program_id(0), changed)
        tl.store(partials + 2 * tl.program_id(0) + 1, squared)


def step(tables: Tables, gradient: torch.dtype, scalars: Scalars, factor: Tensor, partials: Tensor | None) -> None:
    """Step what the tables name. gradient: its dtype. factor: float32 [1]. partials: float32 [chunks, 2] for statistics."""
    _adamw[(len(tables.chunks),)](
        tables.rows,
        tables.chunks,
        factor,
        factor if partials is None else partials,
        *scalars.tuple(),
        GRADIENT="bf16" if gradient == torch.bfloat16 else "fp32",
        STOCHASTIC=tables.stochastic,
        SHADOW=tables.shadowed,
        RECTANGLES=tables.rectangles,
        STATISTICS=partials is not None,
        COLUMNS=COLUMNS,
        CHUNK=CHUNK,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )


def compilations() -> Iterator[Compilation]:
    """float32 master with and without a shadow, and without a master; bfloat16 and float32 gradients."""
    numbers = ("beta2", "rest1", "rest2", "keep", "rate", "inverse_root", "epsilon")
    signature = {"rows": "*i64", "chunks": "*i64", "factor": "*fp32", "partials": "*fp32"}
    for gradient, stochastic, shadow, rectangles, statistics in (
        ("fp32", False, False, False, False),
        ("fp32", False, True, False, False),
        ("bf16", False, True, False, True),
        ("fp32", True, False, False, False),
        ("bf16", True, False, True, True),
    ):
        constants = {"GRADIENT": gradient, "STOCHASTIC": stochastic, "SHADOW": shadow, "RECTANGLES": rectangles}
        constants |= {"STATISTICS": statistics, "COLUMNS": COLUMNS, "CHUNK": CHUNK, "BLOCK": BLOCK}
        yield Compilation(_adamw, signature | dict.fromkeys(numbers, "fp32"), constants, WARPS)
