"""One `Mesh` over megatron-core's `parallel_state`: it checks degrees, owns every process group, and prints its table.

Ranks run tensor-first, then context, data, pipeline, as megatron-core's order `tp-cp-dp-pp` has it:
rank = tensor + T * (context + C * (data + D * pipeline)). Context and data together are the replicas, the data axis of
DeepSpeed's topology (pipe, data, model). Experts are laid over the same replicas:
replica = context + C * data = expert + E * expert_data.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

import torch
import torch.distributed as dist

from parallel.check import resolve_world
from parallel.config import ParallelConfig
from parallel.gloo import share_device
from parallel.megatron import parallel_state


@dataclass(frozen=True)
class Place:
    """This process on every axis. replica: on data x context."""

    tensor: int
    data: int
    pipeline: int
    context: int = 0
    replica: int = 0
    expert: int = 0
    expert_data: int = 0


class Mesh:
    """Process groups of one layout; `close` before building another."""

    def __init__(self, config: ParallelConfig, device: torch.device) -> None:
        """Join the world named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, if not joined already."""
        share_device()
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                timeout=datetime.timedelta(seconds=config.timeout_seconds),
            )
        self._groups_before = set(_all_groups())
        self.config = resolve_world(config, dist.get_world_size())
        self.device = device
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.local_rank = int(os.environ.get("LOCAL_RANK", self.rank))
        parallel_state.initialize_model_parallel(
            config.tensor,
            config.pipeline,
            context_parallel_size=config.context,
            expert_model_parallel_size=config.expert,
            expert_tensor_parallel_size=config.tensor,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=max(1, config.timeout_seconds // 60),
        )
        self.tensor_group = parallel_state.get_tensor_model_parallel_group()
        self.data_group = parallel_state.get_data_parallel_group()
        self.context_group = parallel_state.get_context_parallel_group()
        self.replica_group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        self.expert_group = parallel_state.get_expert_model_parallel_group()
        self.expert_data_group = parallel_state.get_expert_data_parallel_group()
        self.pipeline_group = parallel_state.get_pipeline_model_parallel_group()
        self.model_group = parallel_state.get_model_parallel_group()
        self.place = Place(
            parallel_state.get_tensor_model_parallel_rank(),
            parallel_state.get_data_parallel_rank(),
            parallel_state.get_pipeline_model_parallel_rank(),
            context=self.context_group.rank(),
            replica=self.replica_group.rank(),
            expert=self.expert_group.rank(),
            expert_data=self.expert_data_group.rank(),
        )

    @property
    def first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.place.pipeline == 0

    @property
    def last_stage(self) -> bool:
        """Whether this rank holds the head and the loss."""
        return self.place.pipeline == self.config.pipeline - 1

    def sum_over_data(self, value: float) -> float:
        """Sum of one number over the replicas: each has its own samples, or its own share of their positions."""
        if self.config.replicas == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, group=self.replica_group)
        return float(tensor.item())

    def largest(self, value: float) -> float:
        """Largest of one number over all ranks."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def any_rank(self, flag: bool) -> bool:
        """Whether any rank of the world says yes."""
        return self.largest(float(flag)) > 0

    def barrier(self) -> None:
        """Wait for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """End every process group made since this mesh was, an engine's among them; the world stays joined.

        Every rank must call it, after its engine was closed. Groups that were merely forgotten would keep their threads
        and sockets: some 50 threads a layout, at every change of phase.
        """
        parallel_state.destroy_model_parallel()
        self.barrier()  # nobody may still be waiting for what another rank has sent over a group
        for group in _all_groups():
            if group not in self._groups_before:
                dist.destroy_process_group(group)

    def table(self) -> str:
        """The layout as text: one line an axis, then one a rank (at most 16)."""
        config = self.config
        lines = [f"mesh  {config.degrees} = {self.world_size} process" + ("es" if self.world_size > 1 else "")]
        if self.world_size == 1:
            return lines[0]
        lines.append("  ".join(("rank", *config.places(0))))
        for rank in range(min(self.world_size, 16)):
            lines.append("  ".join((f"{rank:4d}", *(f"{at:{len(axis)}d}" for axis, at in config.places(rank).items()))))
        if self.world_size > 16:
            lines.append(f"… and {self.world_size - 16} more")
        return "\n".join(lines)


def _all_groups() -> list[dist.ProcessGroup]:
    """Every process group of this process; torch has no public list of them."""
    return list(dist.distributed_c10d._world.pg_map)


class MegatronUnit:
    """The `mpu` object DeepSpeed asks for, answered from a Mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self._mesh.place.tensor

    def get_model_parallel_world_size(self) -> int:
        return self._mesh.config.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.tensor_group

    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size
    get_tensor_model_parallel_group = get_model_parallel_group

    def get_data_parallel_rank(self) -> int:
        return self._mesh.place.replica

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.config.replicas

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.replica_group
