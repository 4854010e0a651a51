"""The `torch` engine for one process: plain PyTorch, float32 master weights, the reference every layout is held to.

bf16 and fp16 keep the model in that type and a float32 copy of it for the optimizer, unless bf16 weights are to be stepped
themselves; gradients are summed over micro-batches in float32. fp16 scales its loss dynamically.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.decoder import Decoder, initialise_blocks, named_parameters
from models.parameters import declaration
from models.random import Clock
from parallel.checkpoint.pieces import Piece
from parallel.compiled import compile_blocks
from parallel.config import ParallelError
from parallel.context import start_clock
from parallel.engines.base import (
    Batch,
    EngineSpec,
    NamedParameters,
    OnePass,
    StepResult,
    applied_steps,
    clip_factor,
    clipped_step,
    ensure_state,
    micro_batches,
    model_dtype,
    moments,
    set_applied_steps,
    squared_norm,
)
from parallel.engines.formats import finish_formats
from parallel.engines.loss import WeightedLoss
from parallel.engines.routing import finish_routing
from parallel.engines.scale import LossScale
from parallel.engines.state import parameter_pieces, routing_pieces
from parallel.layers import layers_for
from parallel.mesh import Mesh
from parallel.transfer import sent


class TorchEngine:
    """One process, no sharding."""

    def __init__(self, spec: EngineSpec, mesh: Mesh) -> None:
        if mesh.world_size > 1:
            raise ParallelError(
                f"parallel.engine=torch: runs one process, the world has {mesh.world_size}; set parallel.engine=deepspeed"
            )
        self.spec, self.mesh, self.device = spec, mesh, mesh.device
        self.dtype = model_dtype(spec.precision.name)
        self.clock = Clock(spec.seed)
        self.layers = layers_for(mesh, self.dtype, self.clock, spec.kernels, spec.precision.products)
        self._loss = WeightedLoss(self.layers.loss(), spec.reweight, mesh, spec.loss)
        with torch.device(self.device):
            self.model = Decoder(spec.model, self.layers, recompute=spec.parallel.recompute)
        self.layers.routing.place(self.device)
        initialise_blocks(iter(self.model.blocks), spec.seed)
        compile_blocks(self.model.blocks, spec.parallel)
        self.parameters = self.named_parameters()
        whole = self.dtype == torch.float32 or spec.master == "none"
        self.masters: dict[str, nn.Parameter] = {
            name: parameter if whole else nn.Parameter(parameter.detach().float())
            for name, parameter in self.parameters
        }
        for name, parameter in self.parameters:
            self.masters[name].declaration = declaration(parameter)  # type: ignore[attr-defined]
        self._hooks = [] if whole else self._accumulate_in_float32()
        if spec.master == "none":
            for _, parameter in self.parameters:
                parameter.grad_dtype = torch.float32  # of micro-batches, summed by autograd as the masters' hooks do
        self.optimizer = spec.optimizer(list(self.masters.items()))
        ensure_state(self.optimizer)
        self._narrow = [] if whole else self.parameters
        self._copied = [one for one in self._narrow if not self._copied_by_optimizer(*one)]
        self.scale = LossScale(spec.precision)

    def step(self, batch: Batch, learning_rate: float, *, formats: bool = False) -> StepResult:
        rows, count = self.spec.cut(batch)
        self.model.train()
        self._start_clock(batch, training=True)
        self.layers.routing.start(self.scale.factor / count)
        self.layers.health.start(recording=formats)
        valid = float(batch.weights.sum())
        loss_sum = torch.zeros((), device=self.device)
        for micro in micro_batches(batch, rows):
            loss = self._loss_sum(micro)
            (loss * (self.scale.factor / valid)).backward()
            loss_sum += loss.detach()
        gradients = [master.grad for master in self.masters.values() if master.grad is not None]
        norm = math.sqrt(squared_norm(gradients)) / self.scale.factor
        skipped = not math.isfinite(norm)
        if not skipped:
            factor = clip_factor(norm, self.spec.clip_norm) / self.scale.factor
            clipped_step(self.optimizer, gradients, factor, learning_rate)
            self._write_model(self._copied)
        self.optimizer.zero_grad(set_to_none=True)
        self.scale.adapt(skipped)
        routing = finish_routing(self.layers.routing, self.spec.model, self.mesh, skipped=skipped)
        counted = finish_formats(self.layers.health, self.mesh)
        return StepResult(float(loss_sum), valid, norm, skipped, routing, counted)

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        self.model.eval()
        self._start_clock(batch, training=False)
        total = torch.zeros((), dtype=torch.float64, device=self.device)  # nobody waits for single micro-batches
        with torch.no_grad():
            for micro in micro_batches(batch, self.spec.cut(batch)[0]):
                total += self._loss_sum(micro)
        return float(total), float(batch.weights.sum())

    def next_logits(self, tokens: Tensor, position: int, documents: Tensor | None = None) -> Tensor:
        self.model.eval()
        start_clock(self.clock, self.spec.model, Batch(tokens, tokens, tokens, 0, documents), self.device)
        with torch.no_grad():
            return self.model(sent(tokens, self.device))[position - tokens.shape[1]].float()

    def named_parameters(self) -> NamedParameters:
        return list(named_parameters(iter(self.model.blocks)))

    def pieces(self, *, for_saving: bool, weights_only: bool = False) -> list[Piece]:
        found: list[Piece] = []
        for name, parameter in self.parameters:
            master = self.masters[name]
            state = {key: value.view(-1) for key, value in moments(self.optimizer, master).items()}
            found += parameter_pieces(name, declaration(parameter), master.detach().view(-1), state, 0, weights_only)
        return [*found, *routing_pieces(self.layers.routing, self.spec.model)]

    def state(self) -> dict[str, float]:
        return {"applied_steps": applied_steps(self.optimizer), **self.scale.state()}

    def loaded(self, state: dict[str, float]) -> None:
        set_applied_steps(self.optimizer, state.get("applied_steps", 0.0))
        self.scale.load(state)
        self._write_model(self._narrow)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start_clock(self, batch: Batch, *, training: bool) -> None:
        asked = self._loss.asked(batch, self.spec.model, training=training)
        start_clock(self.clock, self.spec.model, batch, self.device, asked)

    def _loss_sum(self, micro: Batch) -> Tensor:
        output = self.model(sent(micro.inputs, self.device))
        targets, weights = sent(micro.targets, self.device), sent(micro.weights, self.device)
        return self._loss(output, targets, weights, training=self.model.training)

    def _accumulate_in_float32(self) -> list:
        """Move each gradient into its master's float32 sum as soon as autograd has it."""

        def hook_for(master: nn.Parameter):
            def hook(parameter: Tensor) -> None:
                assert parameter.grad is not None
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

            return hook

        return [
            parameter.register_post_accumulate_grad_hook(hook_for(self.masters[name]))
            for name, parameter in self.parameters
        ]

    def _copied_by_optimizer(self, name: str, parameter: nn.Parameter) -> bool:
        return isinstance(self.optimizer, OnePass) and self.optimizer.keep_copy(self.masters[name], parameter)

    @torch.no_grad()
    def _write_model(self, parameters: NamedParameters) -> None:
        """What the model computes in, from its masters."""
        for name, parameter in parameters:
            parameter.copy_(self.masters[name])
