"""What the routers of a process saw in a step: counted while they route, summed over the layout once a step.

A routing keeps one vector for each mixture layer and micro-batch, under the number of its first sample, so that computing
a layer again in backward counts nothing twice. Nothing here waits for the device until the engine asks at the step's end.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.moe.telemetry import BUCKETS, LayerRouting


def tally(indices: Tensor, size: int) -> Tensor:
    """How often each of 0 … size - 1 stands in some indices, int64 [size]; bincount would make a GPU's host wait."""
    flat = indices.flatten()
    return torch.zeros(size, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))


@dataclass(frozen=True)
class RouterState:
    """What a router remembers from step to step, float32 [E]: the bias in its choice, and the shares of choices in the step
    before."""

    bias: Tensor
    frequency: Tensor

    @staticmethod
    def fresh(experts: int) -> RouterState:
        """Of a router that has not been trained; on the CPU also where everything else is made on the meta device."""
        return RouterState(
            torch.zeros(experts, device="cpu"), torch.full((experts,), 1.0 / experts, device="cpu", dtype=torch.float32)
        )


class Routing:
    """The routers of one process: their states, their counts, and how much their losses weigh."""

    def __init__(self) -> None:
        self.states: dict[int, RouterState] = {}
        self.scale = 1.0
        self._seen: dict[tuple[int, int], Tensor] = {}

    def add(self, layer: int, experts: int) -> None:
        """A router was built for the decoder layer at this index."""
        self.states[layer] = RouterState.fresh(experts)

    def start(self, scale: float) -> None:
        """A step begins, at whose backward each micro-batch's router losses weigh `scale`."""
        self.scale = scale
        self._seen.clear()

    def place(self, device: torch.device) -> None:
        """Bring the states to the device that routes."""
        self.states = {
            layer: RouterState(state.bias.to(device), state.frequency.to(device))
            for layer, state in self.states.items()
        }

    def record(
        self,
        layer: int,
        first_sample: int,
        *,
        choices: Tensor,
        scores: Tensor,
        entropy: Tensor,
        z: Tensor,
        drops: Tensor,
    ) -> None:
        """Count one micro-batch of a layer.

        choices: int64 [E]; scores: sums over this rank's tokens [E]; entropy: sum over these tokens; z: sum of squared
        log-sum-exps; drops: [2, 16], dropped and all choices by bucket of position.
        """
        parts = (choices, scores, entropy[None], z[None], drops.flatten())
        self._seen[layer, first_sample] = torch.cat([part.detach().to(torch.float64) for part in parts])

    def collect(self, layers: int, experts: int, device: torch.device) -> Tensor:
        """Sums of this process [layers of the model, 2 E + 34], zero where a layer is not here; float64. experts: the model's,
        since a pipeline stage may have no router and must send sums of the same shape."""
        found = torch.zeros(layers, 2 * experts + 2 + 2 * BUCKETS, dtype=torch.float64, device=device)
        for (layer, _), seen in self._seen.items():
            found[layer] += seen
        return found


def summarise(layer: int, sums: Tensor, experts: int) -> LayerRouting:
    """From sums over the global batch, in which what several ranks have seen alike is counted alike everywhere."""
    choices, scores, rest = sums[:experts], sums[experts : 2 * experts], sums[2 * experts :]
    load, mean = choices / choices.sum(), scores / scores.sum()
    tokens = scores.sum()
    drops = rest[2:].view(2, BUCKETS)
    return LayerRouting(
        layer,
        tuple(load.tolist()),
        float(rest[0] / tokens),
        float(experts * (load * mean).sum()),
        float(rest[1] / tokens),
        float(drops[0].sum() / drops[1].sum().clamp(min=1)),
        tuple((drops[0] / drops[1].clamp(min=1)).tolist()),
    )
