"""Products of block formats in the units that some GPUs have for them: MXFP8 and NVFP4 on Blackwell, FP8 from Ada on.

Written after torch's `scaled_mm`, checked on fake tensors for shapes and types, not yet run on such a GPU by us. Elsewhere, and
for what it does not take, `multiply` says None, and the product is computed from what the operands stand for.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.formats.operand import Operand
from models.formats.scales import power, spread

TILE_ROWS, TILE_COLUMNS = 128, 4
"""Scales are read in tiles of so many rows and blocks (cuBLAS documentation, "1D block scaling factors layout")."""

_TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e2m1": torch.float4_e2m1fn_x2}


def multiply(a: Operand, b: Operand, dtype: torch.dtype) -> Tensor | None:
    """a [..., R] times b [N, R] transposed, [..., N] in bfloat16, both as stored with blocks along R; None where this device
    has no units for the formats, or they do not take these shapes."""
    if a.layout is None or b.layout is None or dtype != torch.bfloat16:
        return None
    name, other = a.layout[0].name, b.layout[0].name
    if not a.tensors[0].is_cuda or not _has_units(name, other, torch.cuda.get_device_capability(a.tensors[0].device)):
        return None
    return scaled_product(a, b)


def scaled_product(a: Operand, b: Operand) -> Tensor | None:
    """The product without asking whether the device has units."""
    assert a.layout is not None and b.layout is not None
    rows, outputs = prod(a.tensors[0].shape[:-1]), b.tensors[0].shape[0]
    if rows % 16 or outputs % 16 or a.tensors[0].shape[-1] % 16:
        return None
    left, right = (_elements(operand) for operand in (a, b))
    scales, kind = zip(*(_scales(operand) for operand in (a, b)), strict=True)
    swizzled = [F.SwizzleType.SWIZZLE_32_4_4, F.SwizzleType.NO_SWIZZLE]
    options: dict[str, Any] = {}
    if a.layout[0].block:
        more = swizzled if len(kind[0]) == 2 else swizzled[:1]
        options = {"swizzle_a": more, "swizzle_b": more}
    y = F.scaled_mm(left, right.t(), scales[0], kind[0], scales[1], kind[1], output_dtype=torch.bfloat16, **options)
    return y.view(*a.tensors[0].shape[:-1], outputs)


def _has_units(name: str, other: str, capability: tuple[int, int]) -> bool:
    if name.startswith("fp8") and other.startswith("fp8"):
        return capability >= (8, 9) and not (name.endswith("e5m2") and other.endswith("e5m2"))
    both = name.startswith("mxfp8") and other.startswith("mxfp8") and not (name.endswith("e5m2") and name == other)
    return capability >= (10, 0) and (both or name == other == "nvfp4")


def _elements(found: Operand) -> Tensor:
    assert found.layout is not None
    elements = found.tensors[0].flatten(0, -2)
    return elements.contiguous().view(_TYPES[found.layout[0].element.name])


def _scales(found: Operand) -> tuple[list[Tensor], list[F.ScalingType]]:
    """As `scaled_mm` wants them, and what they are."""
    assert found.layout is not None
    format, _, square = found.layout
    scales = found.tensors[1]
    if not format.block:
        return [power(scales.flatten(0, -2))], [F.ScalingType.RowWise]
    if square:
        scales = spread(scales.movedim(-1, -2), format.block, False).movedim(-1, -2)
    tiles = swizzle(scales.flatten(0, -2))
    if format.scale == "e8m0":
        return [tiles.view(torch.float8_e8m0fnu)], [F.ScalingType.BlockWise1x32]
    both = [tiles.view(torch.float8_e4m3fn), found.tensors[2]]
    return both, [F.ScalingType.BlockWise1x16, F.ScalingType.TensorWise]


def swizzle(scales: Tensor) -> Tensor:
    """Scales uint8 [rows, blocks] in the order of tensor cores, flat, padded with 0 to whole tiles: within a tile of 128 x 4
    that of row r and column c stands at 16 (r mod 32) + 4 (r div 32) + c."""
    rows, columns = scales.shape
    tall, wide = -(-rows // TILE_ROWS), -(-columns // TILE_COLUMNS)
    padded = F.pad(scales, (0, wide * TILE_COLUMNS - columns, 0, tall * TILE_ROWS - rows))
    tiles = padded.view(tall, TILE_ROWS // 32, 32, wide, TILE_COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).reshape(-1)
