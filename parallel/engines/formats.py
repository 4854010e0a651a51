"""The end of a step in which operands of quantised products were counted: sums over the world."""

from __future__ import annotations

import torch
import torch.distributed as dist

from models.formats.health import Health, Place
from models.formats.telemetry import SUMS, LayerFormats
from parallel.mesh import Mesh


@torch.no_grad()
def finish_formats(health: Health, mesh: Mesh) -> tuple[LayerFormats, ...]:
    """What became of every operand in this step, the same on every rank; nothing where the step was not recorded. Collective
    over the world where it was.

    What several ranks hold alike, all of them count: figures are ratios of sums, in which that cancels.
    """
    if not health.recording:
        return ()
    seen = health.collect()
    places = _agreed(list(seen), mesh)
    if not places:
        return ()
    nothing = torch.zeros(SUMS, dtype=torch.float64, device=mesh.device)
    sums = torch.stack([seen.get(place, nothing) for place in places])
    if mesh.world_size > 1:
        dist.all_reduce(sums)
    table = sums.tolist()  # the only time that the step waits for what was counted
    return tuple(LayerFormats.of(*place, row) for place, row in zip(places, table, strict=True))


def _agreed(places: list[Place], mesh: Mesh) -> list[Place]:
    """Those of all pipeline stages, in the order of layers; ranks of one stage have the same."""
    if mesh.config.pipeline > 1:
        told: list[list[Place]] = [[] for _ in range(mesh.config.pipeline)]
        dist.all_gather_object(told, places, group=mesh.pipeline_group)
        places = list({place for stage in told for place in stage})
    return sorted(places, key=_order)


def _order(place: Place) -> tuple:
    """layers.10 comes after layers.2."""
    name, *rest = place
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")], rest
