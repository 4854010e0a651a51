"""What quantising a step's operands came to, as plain numbers: what callbacks and reports see. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SUMS = 8
"""Numbers that `LayerFormats.of` derives its figures from, and that add up over micro-batches and ranks: elements that are not
zero, blocks with such, saturated blocks, elements in the last bin, elements that became zero, and the sums of x², (q - x)² and
x q of elements x that became q."""


@dataclass(frozen=True)
class LayerFormats:
    """One operand of one product of a linear layer in a step, over the global batch.

    layer: the linear layer's name. product: forward, input_gradient, weight_gradient. role: activation, weight, gradient.
    Zeros count nowhere, since they are exact, and so does no row of zeros that fills up an expert's group.

    saturated: share of blocks (of formats without blocks, rows) with an element beyond the largest that their scale can say,
    which was clamped. last_bin: share of elements that have the largest magnitude of the element format. underflow: share that
    became zero. snr: signal to noise, 10 log10(sum x² / sum (q - x)²), dB; infinite where nothing was rounded. bias:
    sum x q / sum x² - 1, how much longer x has become along itself: of a gradient, the multiplicative bias of arXiv
    2506.20752.
    """

    layer: str
    product: str
    role: str
    format: str
    saturated: float
    last_bin: float
    underflow: float
    snr: float
    bias: float

    @staticmethod
    def of(layer: str, product: str, role: str, format: str, sums: Sequence[float]) -> LayerFormats:
        """From the numbers that `SUMS` tells."""
        elements, blocks, saturated, last_bin, underflow, signal, noise, along = sums
        return LayerFormats(
            layer,
            product,
            role,
            format,
            saturated / max(blocks, 1.0),
            last_bin / max(elements, 1.0),
            underflow / max(elements, 1.0),
            10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf,
            along / signal - 1 if signal > 0 else 0.0,
        )

    @property
    def place(self) -> str:
        """Which operand this is, for people."""
        return f"{self.role} of {self.layer} ({self.product})"


def headline(operands: Sequence[LayerFormats]) -> dict[str, float]:
    """The worst of every figure over all operands; of gradient bias that of gradients, with its sign."""
    if not operands:
        return {}
    found = {
        "format_saturated": max(one.saturated for one in operands),
        "format_last_bin": max(one.last_bin for one in operands),
        "format_underflow": max(one.underflow for one in operands),
        "format_snr": min(one.snr for one in operands),
    }
    biases = [one.bias for one in operands if one.role == "gradient"]
    return found | ({"format_gradient_bias": max(biases, key=abs)} if biases else {})
