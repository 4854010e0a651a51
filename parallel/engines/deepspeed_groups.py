"""The same groups of the optimizer on every stage of a pipeline under DeepSpeed.

It sums the gradient norm over the stages once for every group, so a stage with fewer groups leaves the others waiting for ever.
Where a parametrization gives embeddings a learning rate of their own, stages between the first and the last have none of them:
a number that nothing reads, and that no gradient moves, stands in for each group that a stage lacks.

Relied on: DeepSpeed asks the module for the names of all that its optimizer holds, so stand-ins are parameters of the module,
outside its blocks, where neither checkpoints nor we look.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from models.parameters import declare
from parallel.mesh import Mesh


def same_groups(optimizer: torch.optim.Optimizer, module: nn.Module, mesh: Mesh, dtype: torch.dtype) -> None:
    """Put the groups of all stages into this one's optimizer, in one order, where any stage lacks one. Collective over the
    pipeline axis. dtype: of the model's parameters."""
    own = {_options(group): group for group in optimizer.param_groups}
    told: list[Any] = [None] * mesh.config.pipeline
    dist.all_gather_object(told, list(own), group=mesh.pipeline_group)
    if all(keys == told[0] for keys in told):
        return
    optimizer.param_groups = []
    for number, key in enumerate(dict.fromkeys(key for keys in told for key in keys)):
        group = own.get(key)
        if group is None:
            stand_in = _stand_in(mesh, dtype)
            module.register_parameter(f"stand_in_{number}", stand_in)
            group = {**dict(key), "params": [stand_in]}
        optimizer.add_param_group(group)


def _options(group: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in group.items() if name != "params")


def _stand_in(mesh: Mesh, dtype: torch.dtype) -> nn.Parameter:
    parameter = nn.Parameter(torch.zeros(1, dtype=dtype, device=mesh.device))
    declare(parameter)
    parameter.tensor_model_parallel = False  # type: ignore[attr-defined]
    return parameter
