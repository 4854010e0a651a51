"""How well operands survive their formats: counted while they are quantised, in the steps that ask for it.

A health keeps one vector for each operand and micro-batch, under the number of its first sample, so that computing a layer
again in backward counts nothing twice. Nothing here waits for the device until the engine asks at the step's end, and nothing
is computed in other steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.formats.elements import Element
from models.formats.operand import Operand
from models.formats.quantize import in_blocks

Place = tuple[str, str, str, str]
"""(layer, product, role, format) of an operand."""


class Health:
    """The operands of one process's linear layers."""

    def __init__(self) -> None:
        self.recording = False
        self._seen: dict[tuple[Place, int], Tensor] = {}

    def start(self, *, recording: bool) -> None:
        """A step begins, in which operands are counted or not."""
        self.recording = recording
        self._seen.clear()

    def record(self, place: Place, first_sample: int | Tensor, x: Tensor, found: Operand) -> None:
        """Count one micro-batch's operand: x as it was quantised, and what it became."""
        self._seen[place, int(first_sample)] = tally(x, found)

    def collect(self) -> dict[Place, Tensor]:
        """Sums float64 [8] of this process, in the order of `telemetry.SUMS`; ends the recording."""
        sums: dict[Place, Tensor] = {}
        for (place, _), seen in self._seen.items():
            sums[place] = sums[place] + seen if place in sums else seen
        self.start(recording=False)
        return sums


@torch.no_grad()
def tally(x: Tensor, found: Operand) -> Tensor:
    """The sums of `telemetry.SUMS`, float64 [8], of x and what it became. NaN and infinity, and blocks with them, count
    nowhere: their step is skipped."""
    tensor = found.tensor()
    element, dim = tensor.format.element, tensor.dim
    before, after = (part.movedim(dim, -1).to(torch.float64) for part in (x, tensor.dequantize()))
    usable = before.isfinite() & after.isfinite()
    before, after = torch.where(usable, before, 0.0), torch.where(usable, after, 0.0)
    there = before != 0
    clamped = there & (before.abs() > element.largest * tensor.factors().to(torch.float64))
    counts = (
        there,
        _any_in_block(there, tensor.format.block, tensor.square),
        _any_in_block(clamped, tensor.format.block, tensor.square),
        there & _in_last_bin(tensor.codes(), element),
        there & (after == 0),
        before.square(),
        (after - before).square(),
        before * after,
    )
    return torch.stack([part.sum(dtype=torch.float64) for part in counts])


def _any_in_block(true: Tensor, block: int, square: bool) -> Tensor:
    """Whether something is true in each block, or in each row of a format without blocks."""
    return (in_blocks(true, block, square) if block else true).any(-1)


def _in_last_bin(codes: Tensor, element: Element) -> Tensor:
    if element.integer:
        return (codes == element.largest_code) | (codes == 256 - element.largest_code)
    return codes & ((1 << (element.bits - 1)) - 1) == element.largest_code
