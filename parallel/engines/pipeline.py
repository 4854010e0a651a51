"""The pipeline axis of the `torch` engine: stages under torch's schedules, and a plain pass forward without one.

Relied on (and listed by the contract test): a stage whose example inputs and outputs are given infers nothing by running
the model; a schedule cuts inputs and targets along dim 0 in order; what `_Stage` calls of FSDP2's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from parallel.mesh import Mesh
from parallel.schedule import SCHEDULES, owner, stage_count

StageLoss = Callable[[Tensor, Tensor], Tensor]


def groups_of(module: nn.Module) -> Iterator[FSDPParamGroup]:
    """FSDP2's groups of parameters of a module and everything in it."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            yield from part._get_fsdp_state()._fsdp_param_groups


class _Stage(pipelining.PipelineStage):
    """A stage whose weight gradients are summed over micro-batches in float32 where backward is split, too: FSDP2 does so when
    backward of a whole layer ends, which a split one never does."""

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        for group in groups_of(self.submod):
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    parameter.accumulate_unsharded_grad_if_needed()
                    parameter.to_accumulated_grad_if_needed()


class Pipeline:
    """This rank's stages, and the schedule that runs them.

    modules: stage -> module. activation: shape between stages [S(/T), B, H]; logits: shape at the end [S, B, V(/T)].
    loss: (logits, rows [B]) -> what backward starts from, where rows index the sequences of the batch of this step.
    """

    def __init__(
        self,
        mesh: Mesh,
        modules: dict[int, nn.Module],
        loss: StageLoss,
        *,
        micro_batch: int,
        micro_batches: int,
        sequence_length: int,
        activation: tuple[int, ...],
        logits: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.mesh, self.modules, self.config = mesh, modules, mesh.config
        self.stages = stage_count(mesh.config)
        self.activation, self.dtype = activation, dtype
        tokens = torch.empty(micro_batch, sequence_length, dtype=torch.int64, device="meta")
        between = torch.empty(activation, dtype=dtype, device="meta", requires_grad=True)
        ends = torch.empty(logits, dtype=dtype, device="meta", requires_grad=True)
        self.held = [
            _Stage(
                module,
                index,
                self.stages,
                mesh.device,
                input_args=tokens if index == 0 else between,
                output_args=ends if index == self.stages - 1 else between,
                group=mesh.pipeline_group,
            )
            for index, module in modules.items()
        ]
        schedule = SCHEDULES[self.config.schedule]
        made: Any = getattr(pipelining, schedule.torch_name)
        self.schedule = made(
            self.held[0] if schedule.single else self.held,
            n_microbatches=micro_batches,
            loss_fn=loss,
            scale_grads=False,
        )

    def step(self, inputs: Tensor) -> None:
        """Forward and backward of one batch, tokens [R, S]; gradients are left in the parameters."""
        arguments = (inputs,) if 0 in self.modules else ()
        keywords = {}
        if self.stages - 1 in self.modules:
            keywords = {"target": torch.arange(inputs.shape[0], device=inputs.device), "losses": []}
        self.schedule.step(*arguments, return_outputs=False, **keywords)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor | None:
        """Logits of one micro-batch on the rank of the last stage, None elsewhere: stage after stage, whatever the schedule."""
        x: Tensor | None = tokens
        for stage in range(self.stages):
            here = stage in self.modules
            if stage > 0 and owner(self.config, stage - 1) != owner(self.config, stage):
                x = self._pass_on(x, stage, here)
            if here:
                assert x is not None
                x = self.modules[stage](x)
        return x if self.stages - 1 in self.modules else None

    def _pass_on(self, x: Tensor | None, stage: int, here: bool) -> Tensor | None:
        group = self.mesh.pipeline_group
        if stage - 1 in self.modules:
            assert x is not None
            dist.send(x.contiguous(), group=group, group_dst=owner(self.config, stage))
        if not here:
            return x
        received = torch.empty(self.activation, dtype=self.dtype, device=self.mesh.device)
        dist.recv(received, group=group, group_src=owner(self.config, stage - 1))
        return received
