"""The numbers of one AdamW step that all its elements share, and the exact bits that stochastic rounding adds."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass


@dataclass(frozen=True)
class Scalars:
    """Of a step of AdamW (arXiv 1711.05101, algorithm 2), worked out in float64 on the host.

    rest1, rest2: 1 - beta. keep: 1 - rate * weight decay, which a parameter is multiplied by. rate: the learning rate over
    the first moment's bias correction. inverse_root: 1 over the root of the second moment's.
    """

    beta2: float
    rest1: float
    rest2: float
    keep: float
    rate: float
    inverse_root: float
    epsilon: float

    @classmethod
    def at(
        cls, step: float, rate: float, betas: tuple[float, float], epsilon: float, weight_decay: float = 0.0
    ) -> Scalars:
        """Of the step of this number, from 1. rate: learning rate, 0 allowed."""
        beta1, beta2 = betas
        return cls(
            beta2,
            1 - beta1,
            1 - beta2,
            1 - rate * weight_decay,
            rate / (1 - beta1**step),
            1 / math.sqrt(1 - beta2**step),
            epsilon,
        )

    def tuple(self) -> tuple[float, ...]:
        """In the order of the fields, which all implementations take them in."""
        return astuple(self)
