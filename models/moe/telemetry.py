"""What a step's routing comes to, as plain numbers: what callbacks and reports see. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS = 16  # of positions, for the share of dropped choices


@dataclass(frozen=True)
class LayerRouting:
    """One layer's routing in a step, over the global batch.

    load: share of choices of each expert (before drops), sums to 1. entropy: mean over tokens of the entropy of the scores, in
    nats. balance: experts x sum(load x mean score), 1 when even. z: mean squared log-sum-exp. drop_share: share of choices
    dropped; dropped: the same in 16 equal buckets of the position in the sequence.
    """

    layer: int
    load: tuple[float, ...]
    entropy: float
    balance: float
    z: float
    drop_share: float
    dropped: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Load of the busiest expert, 1 when even."""
        return max(self.load) * len(self.load)


def headline(layers: Sequence[LayerRouting]) -> dict[str, float]:
    """All layers in one line of figures: means of entropy, balance and drops, and the load of the busiest expert of all."""
    if not layers:
        return {}
    count = len(layers)
    return {
        "router_entropy": sum(layer.entropy for layer in layers) / count,
        "router_balance": sum(layer.balance for layer in layers) / count,
        "router_largest_load": max(layer.largest for layer in layers),
        "router_drop_share": sum(layer.drop_share for layer in layers) / count,
    }
