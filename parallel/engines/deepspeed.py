"""The `deepspeed` engine: ZeRO over the data axis, 1F1B over the pipeline axis, megatron-core's layers inside.

Losses are summed, not averaged: every target's weight is scaled by (replicas x micro-batches / valid tokens of the global
batch), which DeepSpeed's division by both undoes. So a gradient is that of the mean over valid tokens, at any layout.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import p2p
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from deepspeed.runtime.zero import parameter_offload
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from parallel.megatron import lean
from parallel.transfer import sent

# ZeRO asks whether the optimizer is Muon, for whose functions torch.compile would import inductor: 1 to 3 s a process
with lean():
    import deepspeed.runtime.zero.muon.muon_optimizer

from models.decoder import (
    Block,
    Decoder,
    EmbeddingBlock,
    HeadBlock,
    block_count,
    block_recipe,
    named_parameters,
)
from models.layers import Layers
from models.parameters import declaration, initialise
from models.random import Clock
from parallel.checkpoint.pieces import Piece, rectangles_of_range
from parallel.compiled import compile_blocks
from parallel.context import cut_for, start_clock
from parallel.engines.base import (
    Batch,
    EngineSpec,
    NamedParameters,
    StepResult,
    applied_steps,
    clip_factor,
    micro_batches,
    model_dtype,
    set_applied_steps,
    set_learning_rate,
    squared_norm,
)
from parallel.engines.deepspeed_experts import mark_experts, split_groups
from parallel.engines.deepspeed_groups import same_groups
from parallel.engines.deepspeed_state import ensure_moments, held_ranges, refresh_model
from parallel.engines.formats import finish_formats
from parallel.engines.loss import WeightedLoss
from parallel.engines.routing import finish_routing
from parallel.engines.state import parameter_pieces, routing_pieces
from parallel.experts import same_on_replicas
from parallel.layers import layers_for, logits_at
from parallel.mesh import MegatronUnit, Mesh
from parallel.stages import stage_bounds


class DeepSpeedEngine:
    """A model under DeepSpeed at one layout."""

    def __init__(self, spec: EngineSpec, mesh: Mesh) -> None:
        self.spec, self.mesh, self.device = spec, mesh, mesh.device
        self.dtype = model_dtype(spec.precision.name)
        self.clock, self.cut = Clock(spec.seed), cut_for(mesh)
        self.layers = layers_for(mesh, self.dtype, self.clock, spec.kernels, spec.precision.products)
        self._loss = WeightedLoss(self.layers.loss(), spec.reweight, mesh, spec.loss)
        self.pipelined = mesh.config.pipeline > 1
        self._norm = 0.0
        self._room = (0, 0)
        with _quiet():
            _join_deepspeed(self.device)
            self.module = self._build_module()
            compile_blocks(self._blocks(), mesh.config)
            self.parameters = self.named_parameters()
            self._initialise()
            for _, parameter in self.parameters:
                parameter.tensor_model_parallel = not declaration(parameter).whole_on_each  # type: ignore[attr-defined]
            self.optimizer = spec.optimizer(self._owned_once())
            if self.pipelined:
                same_groups(self.optimizer, self.module, mesh, self.dtype)
            if mesh.config.expert > 1:
                mark_experts(self.module, mesh)
                split_groups(self.optimizer)
            self.engine, *_ = deepspeed.initialize(
                model=self.module,
                optimizer=self.optimizer,
                config=self._config(),
                mpu=None if self.pipelined else MegatronUnit(mesh),
                dist_init_required=False,
            )
        self.zero = mesh.config.zero_stage
        self.whole_gradients = self.zero == 0
        if self.whole_gradients:
            self.optimizer.register_step_pre_hook(self._clip_or_skip)
        ensure_moments(self.engine, self.zero)
        self.layers.routing.place(self.device)

    # What the loop asks for -----------------------------------------------------------------------------------------

    def step(self, batch: Batch, learning_rate: float, *, formats: bool = False) -> StepResult:
        rows, count = self.spec.cut(batch)
        self._expect(rows, count)
        batch = self._share(batch, training=True)
        self.layers.routing.start(self._routing_scale(count))
        self.layers.health.start(recording=formats)
        set_learning_rate(self.engine.basic_optimizer, learning_rate)
        batch, valid = self._scaled(batch, count)
        if self.pipelined:
            self._make_room(rows, batch.inputs.shape[1])
            mean = float(self.engine.train_batch(self._feed(batch, rows)))
        else:
            mean = self._step_plain(batch, rows, count)
        norm = self._norm if self.whole_gradients else float(self.engine.get_global_grad_norm() or 0.0)
        skipped = not math.isfinite(norm)
        routing = finish_routing(self.layers.routing, self.spec.model, self.mesh, skipped=skipped)
        counted = finish_formats(self.layers.health, self.mesh)
        return StepResult(mean * valid, valid, norm, skipped, routing, counted)

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        rows, count = self.spec.cut(batch)
        batch = self._share(batch, training=False)
        scaled, valid = self._scaled(batch, count)
        if self.pipelined:
            self._make_room(rows, batch.inputs.shape[1])
            with _quiet():
                mean = self.engine.eval_batch(self._feed(scaled, rows), num_micro_batches=count, reduce_output="avg")
            return float(mean) * valid, valid
        self.engine.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)  # nobody waits for single micro-batches
        with torch.no_grad():
            for micro in micro_batches(batch, rows):
                total += self._loss_sum(self.engine(sent(micro.inputs, self.device)), _labels(micro, self.device))
        return self.mesh.sum_over_data(float(total)), valid

    def next_logits(self, tokens: Tensor, position: int, documents: Tensor | None = None) -> Tensor:
        start_clock(self.clock, self.spec.model, Batch(tokens, tokens, tokens, 0, documents), self.device)
        length, tokens = tokens.shape[1], self.cut.take(sent(tokens, self.device))
        if not self.pipelined:
            self.engine.eval()
            with torch.no_grad():
                logits = logits_at(self.engine(tokens), position, length, self.mesh)
            assert logits is not None
            return same_on_replicas(logits, self.mesh)
        self._make_room(*tokens.shape)
        zero = torch.zeros(tokens.shape, dtype=torch.float32, device=self.device)
        feed = iter([(tokens, (tokens, zero))])
        with _quiet():
            found = self.engine.eval_batch(feed, return_logits=True, num_micro_batches=1)
        size = (tokens.shape[0], self.spec.model.padded_vocab)
        logits = torch.empty(size, dtype=torch.float32, device=self.device)
        if self.mesh.last_stage:
            logits = logits_at(found[1], position, length, self.mesh)
            assert logits is not None
        source = dist.get_process_group_ranks(self.mesh.pipeline_group)[-1]
        dist.broadcast(logits, src=source, group=self.mesh.pipeline_group)
        return same_on_replicas(logits, self.mesh)

    def named_parameters(self) -> NamedParameters:
        return list(named_parameters(iter(self._blocks())))

    def pieces(self, *, for_saving: bool, weights_only: bool = False) -> list[Piece]:
        found: list[Piece] = []
        for index, (name, parameter) in enumerate(self.parameters):
            declared = declaration(parameter)
            if for_saving and not self._saves(index, parameter):
                continue
            for held in held_ranges(self.engine, parameter, self.zero):
                found += parameter_pieces(name, declared, held.master, held.moments, held.start, weights_only)
        if not for_saving or (self.mesh.place.tensor == 0 and self.mesh.place.replica == 0):
            found += routing_pieces(self.layers.routing, self.spec.model)
        return found

    def state(self) -> dict[str, float]:
        scale = float(getattr(self.engine.optimizer, "loss_scale", 1.0) or 1.0)
        return {"applied_steps": applied_steps(self.engine.basic_optimizer), "loss_scale": scale}

    def loaded(self, state: dict[str, float]) -> None:
        set_applied_steps(self.engine.basic_optimizer, state.get("applied_steps", 0.0))
        refresh_model(self.engine, self.zero)

    def close(self) -> None:
        with _quiet():
            self.engine.destroy()
        _leave_deepspeed(self.module)

    # Building -------------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        spec, config = self.spec, self.mesh.config
        zero: dict[str, Any] = {
            "stage": config.zero_stage,
            "reduce_bucket_size": _bucket(self.parameters),
            "allgather_bucket_size": _bucket(self.parameters),
            "overlap_comm": self.device.type == "cuda",
            # would replace torch.nn.functional.linear for the whole process
            "memory_efficient_linear": False,
        }
        if config.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        return {
            "train_batch_size": spec.micro_batch * spec.micro_batches * config.replicas,
            "train_micro_batch_size_per_gpu": spec.micro_batch,
            "gradient_accumulation_steps": spec.micro_batches,
            # at ZeRO 0 DeepSpeed clips without telling the norm, so our hook does it there
            "gradient_clipping": spec.clip_norm if config.zero_stage > 0 else 0.0,
            "steps_per_print": 10**12,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": spec.precision.name == "bf16"},
            "fp16": {
                "enabled": spec.precision.name == "fp16",
                "initial_scale_power": spec.precision.initial_loss_scale_power,
                "loss_scale_window": spec.precision.loss_scale_window,
            },
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
            "pipeline": {"pipe_partitioned": False, "grad_partitioned": False},
        }

    def _build_module(self) -> nn.Module:
        spec, config = self.spec, self.mesh.config
        build = partial(Decoder, spec.model, self.layers, recompute=config.recompute)
        with torch.device(self.device):
            if self.pipelined:
                return _Pipeline(spec, self.mesh, self.layers, self._loss_sum)
            if config.zero_stage < 3:
                return build()
            settings: dict[str, Any] = {
                "train_micro_batch_size_per_gpu": 1,
                "zero_optimization": {"stage": 3, "memory_efficient_linear": False},
            }
            if self.dtype != torch.float32:
                settings["bf16" if self.dtype == torch.bfloat16 else "fp16"] = {"enabled": True}
            # no dtype=: deepspeed 0.19.8 turns an explicit float32 into bf16 on CPU (operator precedence in _set_dtype)
            with deepspeed.zero.Init(data_parallel_group=self.mesh.replica_group, config_dict_or_path=settings):
                return build()

    def _blocks(self) -> list[nn.Module]:
        """This rank's blocks, in the order of the model; a tied embedding on the last stage comes with its copy."""
        found = {id(m): m for m in self.module.modules() if isinstance(m, Block)}
        return list(found.values())

    @torch.no_grad()
    def _initialise(self) -> None:
        """Write initial weights; under ZeRO 3 each rank writes its own share, so no rank holds a whole parameter."""
        for name, parameter in self.parameters:
            declared = declaration(parameter)
            share = getattr(parameter, "ds_tensor", None)
            if share is None:
                initialise(parameter.data, name, self.spec.seed, declared, (0,) * parameter.dim())
                continue
            start = self.mesh.place.replica * share.numel()
            stop = min(start + share.numel(), parameter.ds_numel)
            for offset, extent, at in rectangles_of_range(declared.local_shape, start, stop):
                part = share.view(-1)[at : at + math.prod(extent)].view(extent)
                initialise(part, name, self.spec.seed, declared, offset)

    def _owned_once(self) -> NamedParameters:
        """Parameters without a second name for the same tensor."""
        return list({id(parameter): (name, parameter) for name, parameter in reversed(self.parameters)}.values())[::-1]

    def _saves(self, index: int, parameter: Tensor) -> bool:
        """Whether this rank writes its pieces of a parameter: one rank of the tensor axis for whole ones, the first stage
        for tied ones, and at ZeRO 0 those that hold the same take turns."""
        if getattr(parameter, "ds_pipe_replicated", False):
            return False
        declared, config, place = declaration(parameter), self.mesh.config, self.mesh.place
        if declared.whole_on_each and place.tensor != 0:
            return False
        if self.zero > 0:
            return True
        if declared.expert:
            return index % (config.replicas // config.expert) == place.expert_data
        return index % config.replicas == place.replica

    # Stepping -------------------------------------------------------------------------------------------------------

    def _routing_scale(self, count: int) -> float:
        """What a micro-batch's router losses weigh: DeepSpeed takes the mean over replicas, of which context ranks hold parts
        of the same micro-batch."""
        scale = float(getattr(self.engine.optimizer, "loss_scale", 1.0) or 1.0)
        return scale * self.mesh.config.context / count

    def _share(self, batch: Batch, *, training: bool) -> Batch:
        """This rank's positions of a batch, of which the clock is told whole."""
        asked = self._loss.asked(batch, self.spec.model, training=training)
        start_clock(self.clock, self.spec.model, batch, self.device, asked)
        return self.cut.batch(batch)

    def _expect(self, rows: int, count: int) -> None:
        """Tell DeepSpeed how many micro-batches this step has. It updates after every multiple of that number, so it begins to
        count anew: steps before this one may have had more or fewer."""
        engine = self.engine
        engine.set_train_micro_batch_size(rows)
        engine.set_train_batch_size(rows * count * self.mesh.config.replicas)
        engine.micro_steps = 0
        if hasattr(engine.optimizer, "gradient_accumulation_steps"):  # ZeRO's own copy of it
            engine.optimizer.gradient_accumulation_steps = count

    def _make_room(self, rows: int, length: int) -> None:
        """Tell DeepSpeed's pipeline of what shape micro-batches are from now on: it makes room once, and keeps it."""
        if (rows, length) != self._room:
            self.engine.reset_activation_shape()
            self._room = rows, length

    def _scaled(self, batch: Batch, count: int) -> tuple[Batch, float]:
        """The batch with weights scaled against DeepSpeed's means, and the valid tokens of the global batch."""
        valid = self.mesh.sum_over_data(float(batch.weights.sum()))
        return replace(batch, weights=batch.weights * (self.mesh.config.replicas * count / valid)), valid

    def _step_plain(self, batch: Batch, rows: int, count: int) -> float:
        self.engine.train()
        total = torch.zeros((), device=self.device)
        for micro in micro_batches(batch, rows):
            loss = self._loss_sum(self.engine(sent(micro.inputs, self.device)), _labels(micro, self.device))
            total += loss.detach()
            self.engine.backward(loss)
            self.engine.step()
        return self.mesh.sum_over_data(float(total)) / (self.mesh.config.replicas * count)

    def _feed(self, batch: Batch, rows: int) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        for micro in micro_batches(batch, rows):
            yield micro.inputs, (micro.targets, micro.weights)

    def _loss_sum(self, output: Tensor, labels: tuple[Tensor, Tensor]) -> Tensor:
        return self._loss(output, *labels, training=self.module.training)

    def _clip_or_skip(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Before the update at ZeRO 0: the global norm with replicated and tied parameters counted once, then clipping;
        a norm that is not finite takes the gradients away, so that the update changes nothing."""
        dense: list[Tensor] = []
        experts: list[Tensor] = []
        gradients: list[Tensor] = []
        for _, parameter in self.parameters:
            if parameter.grad is None:
                continue
            gradients.append(parameter.grad)
            declared, replica = declaration(parameter), getattr(parameter, "ds_pipe_replicated", False)
            if not replica and not (declared.whole_on_each and self.mesh.place.tensor != 0):
                (experts if declared.expert else dense).append(parameter.grad)
        parts = torch.tensor([squared_norm(dense), squared_norm(experts)], dtype=torch.float64, device=self.device)
        if self.mesh.config.model_parallel > 1:
            dist.all_reduce(parts, group=self.mesh.model_group)
        if self.mesh.config.expert > 1:
            dist.all_reduce(parts[1:], group=self.mesh.expert_group)
        total = parts.sum()
        self._norm = math.sqrt(float(total)) if math.isfinite(float(total)) else math.inf
        if not math.isfinite(self._norm):
            optimizer.zero_grad(set_to_none=True)
            return
        factor = clip_factor(self._norm, self.spec.clip_norm)
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)


class _Pipeline(PipelineModule):
    """DeepSpeed's pipeline of our blocks, cut where our cost model says."""

    def __init__(self, spec: EngineSpec, mesh: Mesh, layers: Layers, loss: Any) -> None:
        config = mesh.config
        self.bounds = stage_bounds(spec.model, config.pipeline, spec.sequence_length)
        specs = [_layer_spec(spec, layers, index, config.recompute) for index in range(block_count(spec.model))]
        topology = PipeModelDataParallelTopology(num_pp=config.pipeline, num_mp=config.tensor, num_dp=config.replicas)
        super().__init__(layers=specs, topology=topology, loss_fn=loss)

    def _partition_layers(self, method: str = "") -> None:
        self.parts = self.bounds
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(start=self.parts[stage], stop=self.parts[stage + 1])


def _layer_spec(spec: EngineSpec, layers: Layers, index: int, recompute: str) -> LayerSpec:
    kind, arguments = block_recipe(spec.model, layers, index, recompute)
    if not spec.model.tied_embeddings or kind not in (EmbeddingBlock, HeadBlock):
        return LayerSpec(kind, *arguments)
    forward = partial(_tied_head, HeadBlock(*arguments)) if kind is HeadBlock else None
    return TiedLayerSpec(
        "embedding", EmbeddingBlock, spec.model, layers, forward_fn=forward, tied_weight_attr="token.weight"
    )


def _tied_head(head: HeadBlock, embedding: EmbeddingBlock, x: Tensor) -> Tensor:
    return head(x, embedding.token.weight)


def _labels(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return sent(batch.targets, device), sent(batch.weights, device)


def _bucket(parameters: NamedParameters) -> int:
    """Elements of a communication bucket: DeepSpeed's default would allocate 2 GB for the smallest model."""
    held = sum(getattr(parameter, "ds_numel", parameter.numel()) for _, parameter in parameters)
    return max(1 << 16, min(200_000_000, held))


def _join_deepspeed(device: torch.device) -> None:
    """Hand torch's process group to DeepSpeed, without its shared-memory collective: that would be compiled at first use
    (17 s) and is only called in inference."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, dist_init_required=False)


def _leave_deepspeed(module: nn.Module) -> None:
    """Take an engine out of DeepSpeed's globals: they would keep all its memory (from a module that ZeRO 3 forgets in a
    list or in a cache everything can be reached) and process groups that the mesh is about to end."""
    parameter_offload.FWD_MODULE_STACK[:] = [kept for kept in parameter_offload.FWD_MODULE_STACK if kept is not module]
    to_release = PartitionedParameterCoordinator._PartitionedParameterCoordinator__params_to_release
    inspect.getclosurevars(to_release).nonlocals["func"].cache_clear()
    p2p._grid = None
    deepspeed.utils.groups._release_process_group_references()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep DeepSpeed's prints about its own construction off the user's screen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
