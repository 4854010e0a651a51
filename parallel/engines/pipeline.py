"""The pipeline axis of the `torch` engine: stages under torch's schedules, and a plain pass forward without one.

Relied on (and listed by the contract test): a stage whose example inputs and outputs are given infers nothing by running
the model; a schedule cuts inputs and targets along dim 0 in order, and calls a stage's `forward_one_chunk`,
`backward_one_chunk` and `backward_weight_one_chunk`; what `Stage` calls of FSDP2's parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

from parallel.mesh import Mesh
from parallel.schedule import SCHEDULES, owner, stage_count
from parallel.timeline import BACKWARD, FORWARD, INPUT, WEIGHT

StageLoss = Callable[[Tensor, Tensor], Tensor]
Shape = Callable[[int, int], tuple[int, ...]]
Ends = Callable[[int, int], Tensor]
Watch = Callable[[int, str, int, Callable[[], Any]], Any]
"""(stage, kind, micro-batch, action) -> what the action gives: does it, and may note when."""


def groups_of(module: nn.Module) -> Iterator[FSDPParamGroup]:
    """FSDP2's groups of parameters of a module and everything in it."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            yield from part._get_fsdp_state()._fsdp_param_groups


class Stage(pipelining.PipelineStage):
    """A stage that tells when it does what (`Pipeline.watch`), and whose weight gradients are summed over micro-batches in
    float32 where backward is split, too: FSDP2 does so when backward of a whole layer ends, which a split one never does."""

    pipeline: Pipeline

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **keywords: Any) -> Any:
        action = partial(super().forward_one_chunk, fwd_chunk_id, *arguments, **keywords)
        return self.pipeline.watch(self.stage_index, FORWARD, fwd_chunk_id, action)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **keywords: Any) -> Any:
        action = partial(super().backward_one_chunk, bwd_chunk_id, *arguments, **keywords)
        kind = BACKWARD if keywords.get("full_backward", True) else INPUT
        return self.pipeline.watch(self.stage_index, kind, bwd_chunk_id, action)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        action = partial(self._weight_gradients, bwd_chunk_id, last_backward)
        self.pipeline.watch(self.stage_index, WEIGHT, bwd_chunk_id, action)

    def _weight_gradients(self, bwd_chunk_id: int, last_backward: bool) -> None:
        super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
        for group in groups_of(self.submod):
            for parameter in group.fsdp_params:
                if hasattr(parameter, "_unsharded_param"):
                    parameter.accumulate_unsharded_grad_if_needed()
                    parameter.to_accumulated_grad_if_needed()


def unwatched(stage: int, kind: str, micro_batch: int, action: Callable[[], Any]) -> Any:
    """Do an action and note nothing."""
    return action()


class Pipeline:
    """This rank's modules, and the stages and schedule that run them: torch fixes shapes and the number of micro-batches in
    both, so they are built when a batch of another shape comes. That takes milliseconds, while kept ones would hold room for
    all that their micro-batches receive.

    modules: stage -> module. between: from a micro-batch's tokens [B, S] to the shape of what stages pass on, [S(/T), B, H];
    ends: to a meta tensor like what the last gives, logits [S, B, V(/T)] or losses [S, B]. loss: (output, rows [B]) -> what
    backward starts from, where rows index the sequences of the batch of this step.
    """

    def __init__(
        self,
        mesh: Mesh,
        modules: dict[int, nn.Module],
        loss: StageLoss,
        *,
        between: Shape,
        ends: Ends,
        dtype: torch.dtype,
    ) -> None:
        self.mesh, self.modules, self.config = mesh, modules, mesh.config
        self.stages = stage_count(mesh.config)
        self.loss, self.between, self.ends, self.dtype = loss, between, ends, dtype
        self.watch: Watch = unwatched
        self._schedule: Any = None
        self._shape = (0, 0, 0)

    def step(self, inputs: Tensor, rows: int) -> None:
        """Forward and backward of a batch, tokens [R, S], in micro-batches of `rows`; gradients are left in the parameters."""
        arguments = (inputs,) if 0 in self.modules else ()
        keywords = {}
        if self.stages - 1 in self.modules:
            keywords = {"target": torch.arange(inputs.shape[0], device=inputs.device), "losses": []}
        shape = inputs.shape[0] // rows, rows, inputs.shape[1]
        if shape != self._shape:  # all ranks see the same shapes in the same order, so they build together
            self._schedule, self._shape = self._build(*shape), shape
        self._schedule.step(*arguments, return_outputs=False, **keywords)

    def _build(self, count: int, rows: int, length: int) -> Any:
        tokens = torch.empty(rows, length, dtype=torch.int64, device="meta")
        between = torch.empty(self.between(rows, length), dtype=self.dtype, device="meta", requires_grad=True)
        ends = self.ends(rows, length).requires_grad_()
        held = [
            Stage(
                module,
                index,
                self.stages,
                self.mesh.device,
                input_args=tokens if index == 0 else between,
                output_args=ends if index == self.stages - 1 else between,
                group=self.mesh.pipeline_group,
            )
            for index, module in self.modules.items()
        ]
        for stage in held:
            stage.pipeline = self
        schedule = SCHEDULES[self.config.schedule]
        made: Any = getattr(pipelining, schedule.torch_name)
        return made(held[0] if schedule.single else held, n_microbatches=count, loss_fn=self.loss, scale_grads=False)

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor | None:
        """What the last stage gives of a micro-batch, None on other ranks: stage after stage, whatever the schedule."""
        x: Tensor | None = tokens
        between = self.between(*tokens.shape)
        for stage in range(self.stages):
            here = stage in self.modules
            if stage > 0 and owner(self.config, stage - 1) != owner(self.config, stage):
                x = self._pass_on(x, stage, here, between)
            if here:
                assert x is not None
                x = self.modules[stage](x)
        return x if self.stages - 1 in self.modules else None

    def _pass_on(self, x: Tensor | None, stage: int, here: bool, shape: tuple[int, ...]) -> Tensor | None:
        group = self.mesh.pipeline_group
        if stage - 1 in self.modules:
            assert x is not None
            dist.send(x.contiguous(), group=group, group_dst=owner(self.config, stage))
        if not here:
            return x
        received = torch.empty(shape, dtype=self.dtype, device=self.mesh.device)
        dist.recv(received, group=group, group_src=owner(self.config, stage - 1))
        return received
