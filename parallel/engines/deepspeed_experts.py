"""Experts over the expert axis under DeepSpeed: what it must know of our layers to reduce and shard them over the right ranks.

DeepSpeed looks for its own `MoE` module, for parameters with `allreduce=False` and the name of their groups, and for groups
of the optimizer that hold nothing else. Relied on (and listed by the contract test): those three, the four tables of
`deepspeed.utils.groups`, and that gradients of experts are divided by all replicas.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import nn

from models.moe.layer import MixtureOfExperts
from models.parameters import declaration
from parallel.mesh import Mesh

GROUP = "triaxis_experts"


class _Marker(MoE):
    """Nothing but a sign for DeepSpeed that the model has experts, and what it asks of one: to announce their groups."""

    def __init__(self, mesh: Mesh, experts: int) -> None:
        nn.Module.__init__(self)
        self._mesh, self.num_experts = mesh, experts

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        for name, group in (("_EXPERT", self._mesh.expert_group), ("_EXPERT_DATA", self._mesh.expert_data_group)):
            getattr(groups, f"{name}_PARALLEL_GROUP")[GROUP] = group
            getattr(groups, f"{name}_PARALLEL_GROUP_RANKS")[GROUP] = dist.get_process_group_ranks(group)


def mark_experts(module: nn.Module, mesh: Mesh) -> None:
    """Tell DeepSpeed which parameters of a module are cut over the expert axis, before it builds anything of them."""
    for part in list(module.modules()):
        if isinstance(part, MixtureOfExperts):
            part.experts.deepspeed_marker = _Marker(mesh, part.router.config.experts)
            for parameter in part.experts.parameters():
                parameter.allreduce = False  # type: ignore[attr-defined]
                parameter.group_name = GROUP  # type: ignore[attr-defined]


def split_groups(optimizer: torch.optim.Optimizer) -> None:
    """Give the experts' parameters groups of their own, with the options of those that they were in."""
    old, optimizer.param_groups = optimizer.param_groups, []
    for of_experts in (False, True):
        for group in old:
            chosen = [parameter for parameter in group["params"] if declaration(parameter).expert == of_experts]
            if chosen:
                more = {"moe": True, "name": GROUP} if of_experts else {}
                optimizer.add_param_group({**group, **more, "params": chosen})
