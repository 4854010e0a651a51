"""Back from block formats in plain torch: elements looked up in pairs, so that one access gives two."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from models.formats.elements import ELEMENTS, values
from models.formats.scales import block_value, power
from models.formats.tensor import MXTensor

CHUNK = 1 << 18
"""Elements at a time, as in `reference`."""

_PAIR = {torch.bfloat16: torch.int32, torch.float32: torch.int64}
"""An integer as wide as two numbers."""


@torch.no_grad()
def dequantize(mx: MXTensor, dtype: torch.dtype) -> Tensor:
    """`MXTensor.dequantize`, bit for bit but for the payload of NaN."""
    if torch.compiler.is_compiling() or not mx.elements.numel():
        return mx.dequantize(dtype)
    # bfloat16 holds elements and powers of two, so that their product is rounded once, as from float32
    kind = torch.bfloat16 if dtype == torch.bfloat16 and mx.tensor_scale is None else torch.float32
    scales = mx.scales.repeat_interleave(mx.format.block, -2) if mx.square else mx.scales
    factors = power(scales) if mx.tensor_scale is None else block_value(scales, mx.tensor_scale)
    factors = factors.to(kind).reshape(-1, 1)
    size = mx.format.block * mx.format.element.bits // 8
    elements = mx.elements.reshape(-1, size)
    found = torch.empty(len(elements), mx.format.block, dtype=dtype, device=elements.device)
    table = _pairs(mx.format.element.name, kind, elements.device)
    count = max(1, CHUNK // mx.format.block) if elements.device.type == "cpu" else max(1, len(elements))
    for start in range(0, len(elements), count):
        here = slice(start, start + count)
        index = _pair_index(elements[here], mx.format.element.bits)
        numbers = table.index_select(0, index.view(-1)).view(kind).view(-1, mx.format.block)
        if kind == dtype:
            torch.mul(numbers, factors[here], out=found[here])
        else:
            found[here] = numbers.mul_(factors[here])
    stored = list(mx.shape)
    stored.append(stored.pop(mx.dim))
    return found.view(stored).movedim(-1, mx.dim)


def _pair_index(packed: Tensor, bits: int) -> Tensor:
    """Contiguous packed elements, uint8 [P, bytes], as numbers of two elements each: int32, the first in the lower half."""
    if bits == 4:
        return packed.to(torch.int32)
    if bits == 8:
        return packed.view(torch.int16).to(torch.int32).bitwise_and_(0xFFFF)
    a, b, c = packed.view(torch.int32).view(len(packed), -1, 3).unbind(2)
    across = ((a >> 24) & 0xFF) | ((b & 0xF) << 8), ((b >> 28) & 0xF) | ((c & 0xFF) << 4)
    parts = [a, a >> 12, across[0], b >> 4, b >> 16, across[1], c >> 8, c >> 20]
    return torch.stack(parts, 2).bitwise_and_(0xFFF)


@lru_cache
def _pairs(element: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Two numbers of `dtype`, in memory's order, for every two codes: an integer of `_PAIR` for each index."""
    table = values(ELEMENTS[element]).to(dtype)
    second, first = torch.meshgrid(table, table, indexing="ij")
    return torch.stack([first, second], -1).view(_PAIR[dtype]).view(-1).to(device)
