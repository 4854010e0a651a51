"""The end of a step for the routers of a layout: sums over the world, then every router's own update."""

from __future__ import annotations

import torch
import torch.distributed as dist

from models.config import ModelConfig
from models.moe.routing import Routing, summarise
from models.moe.telemetry import LayerRouting
from parallel.mesh import Mesh


@torch.no_grad()
def finish_routing(routing: Routing, model: ModelConfig, mesh: Mesh, *, skipped: bool) -> tuple[LayerRouting, ...]:
    """What every layer's router did in this step, the same on every rank; routers that balance themselves are moved, unless
    the step was skipped. Collective over the world where the model has experts."""
    moe = model.moe
    if not moe.experts:
        return ()
    sums = routing.collect(model.layers, moe.experts, mesh.device)
    if mesh.world_size > 1:
        dist.all_reduce(sums)
    table = sums.cpu()  # the only time that the step waits for what was counted
    for layer, state in routing.states.items():
        choices = table[layer, : moe.experts]
        if skipped or not choices.sum() > 0:
            continue
        # counts are whole numbers in float64, so the comparison is exact and the same at every layout
        state.bias.add_(moe.bias_rate * torch.sign(choices.sum() - choices * moe.experts).to(state.bias))
        state.frequency.copy_(choices / choices.sum())
    return tuple(
        summarise(layer, table[layer], moe.experts) for layer in range(model.layers) if model.has_experts(layer)
    )
