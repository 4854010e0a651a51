"""What kernels that give MX beside their result have in common: names checked, memory made, tensors put together.

Results are rounded to their dtype first, so elements and scales are those of `models.formats.quantize` of what is returned, bit
for bit; blocks lie along the last dim, rounded to the nearest even.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ModelError
from models.formats import MXTensor, quantize
from models.formats.names import format_of
from models.formats.scales import MODES


def check_output(format: str, scale: str, width: int, dtype: torch.dtype) -> str:
    """The element of an MX format, for rows of `width`. ModelError for what no kernel writes."""
    found = format_of(format)
    if found.scale != "e8m0":
        raise ModelError(
            f"{format}: its scales follow from the whole tensor, which is not known row by row; quantize apart"
        )
    if scale not in MODES:
        raise ModelError(f"scale={scale!r}: choose one of {', '.join(MODES)}")
    if width % found.block:
        raise ModelError(
            f"{format}: rows of {width} elements are no multiple of the block, {found.block}; choose a width that is"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"{format}: takes float32, bfloat16 or float16, not {dtype}")
    return found.element.name


def empty_output(y: Tensor, element: str) -> tuple[Tensor, Tensor]:
    """Elements and scales for y [..., N], uint8; without elements, empty ones."""
    if not element:
        return y.new_empty(0, dtype=torch.uint8), y.new_empty(0, dtype=torch.uint8)
    width = y.shape[-1]
    elements = y.new_empty(*y.shape[:-1], width * bits_of(element) // 8, dtype=torch.uint8)
    return elements, y.new_empty(*y.shape[:-1], width // 32, dtype=torch.uint8)


def bits_of(element: str) -> int:
    """Of an element; 8 for none."""
    from models.formats.elements import ELEMENTS

    return ELEMENTS[element].bits if element else 8


def put_together(elements: Tensor, scales: Tensor, format: str) -> MXTensor:
    """What an operator gave, as a tensor blocked along its last dim."""
    return MXTensor(elements, scales, format_of(format), elements.ndim - 1)


def reference_output(y: Tensor, format: str, scale: str) -> MXTensor:
    """The definition."""
    return quantize(y.detach(), format, -1, scale)
