"""Launches of the Triton kernels of `tiles`: how tensors become matrices, and the sizes of tiles.

A tile is 64 rows x 128 columns where both directions or columns are written: 128 bytes and more of a row, 64 bytes of a
transposed one, and with 256 threads 32 elements a thread, so that several tiles are in flight on each multiprocessor.
Along rows alone nothing is exchanged between threads that lie far apart, and a tile is 16 x 256.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from models.formats.names import Format, format_of
from models.formats.scales import tensor_scale
from models.formats.tensor import MXTensor
from models.kernels.mx_quantize.matrices import Matrices, matrices_of
from models.kernels.mx_quantize.operators import Parts, storage
from models.kernels.mx_quantize.places import sums
from models.kernels.mx_quantize.tiles import dequantize_tile, largest_of_tile, quantize_tile
from models.kernels.runtime.compiling import Compilation

INTERPRETED = 512, 512
"""Rows and columns of a tile on CPU, where the interpreter pays by the program."""


class Tile(NamedTuple):
    """Rows and columns of a program, and its warps."""

    height: int
    width: int
    warps: int


def quantize(
    x: Tensor, formats: tuple[str | None, str | None], dim: int, scale: str, rounding: str, square: bool,
    drawn: tuple[Tensor, list[Tensor], bool] | None, whole: Tensor | None,
) -> list[Parts]:  # fmt: skip
    """x in formats[0] along its last dimension, in formats[1] along `dim`; None for what is not wanted. drawn: for stochastic
    rounding the key, lines of places by dimension (int64 [extent]), and whether their sums may reach 2^32."""
    row, column = formats
    last = x.ndim - 1
    matrices = matrices_of(x, formats, dim)
    made = {place: storage(x, name, (last, dim)[place], square) for place, name in enumerate(formats) if name}
    if not x.numel():
        return [(*parts[:2], tensor_scale(torch.zeros_like(parts[2]))) for parts in made.values()]
    tile = _tile(matrices, column is not None, square)
    for place, parts in made.items():
        found = format_of(formats[place] or "")
        if found.scale == "e4m3":
            along = "square" if square else ("row", "column")[place]
            amax = _largest(matrices, found, along, tile) if whole is None else whole.to(torch.float32)
            made[place] = (*parts[:2], tensor_scale(amax))
    f, t = format_of(row or column or ""), format_of(column or row or "")
    key = places = places_t = matrices.x
    if drawn is not None:
        key, lines, _ = drawn
        places, places_t = (sums(part, x.device) for part in (lines[: matrices.dims], lines[matrices.dims :]))
    nothing = (matrices.x, matrices.x, matrices.x)
    quantize_tile[_grid(matrices, tile)](
        matrices.x, *made.get(0, nothing), *made.get(1, nothing), key, places, places_t, *matrices[3:],
        f.element.name, t.element.name, scale, rounding, f.scale == "e4m3", t.scale == "e4m3", f.block, t.block,
        square, drawn is not None and drawn[2], f.element.bits if row else 0,
        t.element.bits if column else 0, tile.height, tile.width, num_warps=tile.warps,
    )  # fmt: skip
    return list(made.values())


def _grid(m: Matrices, tile: Tile) -> tuple[int, int]:
    return triton.cdiv(m.rows, tile.height) * triton.cdiv(m.columns, tile.width), m.batches


def _largest(m: Matrices, found: Format, along: str, tile: Tile) -> Tensor:
    """The largest finite magnitude, float32 scalar."""
    grid = _grid(m, tile)
    shares = m.x.new_empty(prod(grid), dtype=torch.int32)
    largest_of_tile[grid](
        m.x, shares, m.rows, m.columns, m.batch_stride, m.row_stride,
        along, found.block, tile.height, tile.width, num_warps=tile.warps,
    )  # fmt: skip
    return shares.amax().view(torch.float32)


def _tile(m: Matrices, columns: bool, square: bool) -> Tile:
    height, width = (64, 128) if columns or square else (16, 256)
    if not m.x.is_cuda:
        height, width = INTERPRETED
    least = 32 if columns or square else 1
    height, width = (min(size, triton.next_power_of_2(n)) for size, n in ((height, m.rows), (width, m.columns)))
    height, width = max(height, least), max(width, 32)
    return Tile(height, width, max(1, min(8, height * width // 1024)))


def dequantize(mx: MXTensor, dtype: torch.dtype) -> Tensor:
    """Values of an MXTensor, contiguous: float32 or bfloat16."""
    found, shape, dim = mx.format, mx.shape, mx.dim
    out = mx.elements.new_empty(shape, dtype=dtype)
    last = dim == len(shape) - 1
    columns, batches = shape[dim], 1 if last else prod(shape[:dim])
    rows = prod(shape[:-1]) if last else prod(shape[dim + 1 :])
    if not out.numel():
        return out
    height, width = (16, 256) if last else (64, 64)
    if not out.is_cuda:
        height, width = INTERPRETED
    height, width = min(height, triton.next_power_of_2(rows)), max(32, min(width, triton.next_power_of_2(columns)))
    grid = (triton.cdiv(rows, height) * triton.cdiv(columns, width), batches)
    nvfp4 = found.scale == "e4m3"
    dequantize_tile[grid](
        mx.elements.contiguous(), mx.scales.contiguous(), mx.tensor_scale if nvfp4 else mx.elements,
        out, rows, columns, found.element.name, found.block, nvfp4, mx.square, not last, found.element.bits, height, width,
        num_warps=max(1, min(8, height * width // 1024)),
    )  # fmt: skip
    return out


def compilations() -> Iterator[Compilation]:
    """Activations of 16384 tokens, 4096 wide, in bfloat16."""
    signature = dict.fromkeys(("elements", "scales", "elements_t", "scales_t"), "*u8")
    signature |= dict.fromkeys(("whole", "whole_t"), "*fp32") | {"x": "*bf16", "out": "*bf16", "found": "*i32"}
    signature |= dict.fromkeys(("rows", "columns", "batch_stride", "row_stride"), "i32")
    signature |= dict.fromkeys(("key", "places", "places_t"), "*i64")
    aligned = ("rows", "columns", "row_stride", "batch_stride")
    cases = [(a, b, "nearest_even", False) for a in ("mxfp8_e4m3", None) for b in ("mxfp8_e4m3", None) if a or b]
    cases += [("mxfp6_e3m2", "mxfp6_e3m2", "half_away", False), ("mxfp4_e2m1", "mxfp4_e2m1", "stochastic", False)]
    cases += [("nvfp4", "nvfp4", "stochastic", False), ("mxfp6_e3m2", None, "nearest_even", True)]
    for row, column, rounding, square in cases:
        f, t = (format_of(name or row or column or "") for name in (row, column))
        both = column is not None or square
        constants = {
            "ELEMENT": f.element.name, "ELEMENT_T": t.element.name, "MODE": "floor", "ROUNDING": rounding,
            "NVFP4": f.scale == "e4m3", "NVFP4_T": t.scale == "e4m3", "BLOCK": f.block, "BLOCK_T": t.block,
            "SQUARE": square, "WIDE": rounding == "stochastic",
            "BITS": f.element.bits if row else 0, "BITS_T": t.element.bits if column else 0,
            "HEIGHT": 64 if both else 16, "WIDTH": 128 if both else 256,
        }  # fmt: skip
        yield Compilation(quantize_tile, signature, constants, 8 if both else 4, aligned)
    sizes = {"BLOCK": 16, "HEIGHT": 64, "WIDTH": 128}
    yield Compilation(largest_of_tile, signature, {"ALONG": "column", **sizes}, 8, aligned)
    for name, turned in (("mxfp8_e4m3", False), ("mxfp6_e3m2", False), ("mxfp6_e3m2", True), ("nvfp4", True)):
        f = format_of(name)
        constants = {
            "ELEMENT": f.element.name, "BLOCK": f.block, "NVFP4": f.scale == "e4m3", "SQUARE": False, "TURNED": turned,
            "BITS": f.element.bits, "HEIGHT": 64 if turned else 16, "WIDTH": 64 if turned else 256,
        }  # fmt: skip
        yield Compilation(dequantize_tile, signature, constants, 4, aligned)
