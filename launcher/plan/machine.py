"""A machine with its software: what a plan is made for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from launcher.cluster import ClusterConfig
from launcher.plan.chips import Chip, chip_of
from launcher.plan.errors import PlanError
from launcher.plan.networks import Fabric, Group, network_of
from launcher.plan.rates import Rates
from launcher.plan.software import SOFTWARE, Software
from parallel.config import ParallelConfig


@dataclass(frozen=True)
class Machine:
    """Chips in nodes, their network, and the stack that runs on them. size: bytes of an element; eight: linear layers in
    fp8."""

    fabric: Fabric
    software: Software
    size: int = 2
    eight: bool = False

    @property
    def chip(self) -> Chip:
        """The chip."""
        return self.fabric.chip

    @cached_property
    def rates(self) -> Rates:
        """The chip at work in these numbers."""
        return Rates(self.chip, self.size, self.eight, self.software.kernels)

    @cached_property
    def plain(self) -> Rates:
        """The same without fp8: the head, routers."""
        return Rates(self.chip, self.size, speed=self.software.kernels)

    def tensor_group(self, tensor: int) -> Group:
        """Ranks that share every matrix: consecutive ones."""
        return self.fabric.group(tensor, 1)

    def context_group(self, tensor: int, context: int) -> Group:
        """Ranks that share every sequence."""
        return self.fabric.group(context, tensor)

    def expert_group(self, tensor: int, expert: int) -> Group:
        """Ranks that share the experts of a layer."""
        return self.fabric.group(expert, tensor)

    def stages_cross(self, parallel: ParallelConfig) -> bool:
        """Whether the next stage is on another node."""
        return parallel.tensor * parallel.replicas * 2 > self.fabric.node

    def check_nodes(self, world: int) -> None:
        """PlanError for a number of GPUs that is no whole number of nodes."""
        node = self.fabric.node
        if world > node and world % node:
            raise PlanError(
                f"gpus={world}: not a multiple of cluster.gpus_per_node={node}; the nearest are {world // node * node} and "
                f"{(world // node + 1) * node}"
            )


def machine_of(cluster: ClusterConfig, software: str, size: int = 2, eight: bool = False) -> Machine:
    """The machine that `cluster:` describes."""
    if not cluster.chip:
        raise PlanError(
            "cluster.chip=: a plan in seconds needs to know the chip; choose a cluster= profile, or name it"
        )
    if software not in SOFTWARE:
        raise PlanError(f"--stack={software}: not known; choose one of {', '.join(SOFTWARE)}")
    chip = chip_of(cluster.chip)
    if eight and not chip.flops8:
        raise PlanError(
            f"cluster.chip={chip.name}: has no fp8 products, which precision.products asks for; choose bf16"
        )
    network = network_of(cluster.fabric) if cluster.fabric else None
    return Machine(Fabric(chip, network, max(1, cluster.gpus_per_node)), SOFTWARE[software], size, eight)
