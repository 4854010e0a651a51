"""The `torch` engine over many processes: FSDP2 over the data and context axes, torch's schedules over the pipeline axis,
megatron-core's layers inside.

Every way to lay out the data axis is FSDP2 on a mesh of replicas x shards: DDP has one shard, full sharding one replica, hybrid
sharding some of both. Master weights and moments are this rank's rows in float32; the optimizer sees them as plain
tensors that share memory with FSDP2's shards.

FSDP2 means gradients over all replicas, so losses are scaled by their number: a gradient is that of the mean over valid tokens,
in fp16 times the loss scale.

Relied on (and listed by the contract test): a group's `lazy_init` puts shards where they stay, and is idempotent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from models.blocks import block_count
from models.decoder import Decoder, DecoderLayer, EmbeddingBlock, HeadBlock, named_parameters
from models.moe.layer import MixtureOfExperts
from models.parameters import Declaration, declaration, initialise
from models.random import Clock
from parallel.checkpoint.pieces import Piece
from parallel.compiled import compile_blocks
from parallel.context import cut_for, start_clock
from parallel.engines.base import (
    Batch,
    EngineSpec,
    NamedParameters,
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
from parallel.engines.pipeline import Pipeline, groups_of
from parallel.engines.routing import finish_routing
from parallel.engines.scale import LossScale
from parallel.engines.state import parameter_pieces, routing_pieces
from parallel.experts import same_on_replicas
from parallel.layers import layers_for, logits_at
from parallel.mesh import Mesh
from parallel.schedule import owner, stage_count, stages_of
from parallel.stages import stage_bounds
from parallel.transfer import sent

EMBEDDING, HEAD = "embedding.token.weight", "head.projection.weight"


@dataclass(frozen=True)
class Shard:
    """This rank's rows of a parameter. master: float32, the memory of FSDP2's own shard; start: its first element in the
    local parameter; copy: the last stage's copy of a tied embedding; over: the ranks that it is cut over."""

    name: str
    declared: Declaration
    sharded: nn.Parameter
    master: nn.Parameter
    start: int
    copy: bool
    over: Spread


@dataclass(frozen=True)
class Spread:
    """How parameters lie over the replicas: this rank's place among `replicas` x `shards`. mesh: the same for FSDP2.

    part: share of the replicas that compute gradients of the same parameters, 1 but for experts, whose group of ranks has
    already summed them: FSDP2's mean over the mesh times `part` is the mean over all replicas.
    """

    mesh: DeviceMesh
    replicas: int
    replica: int
    shards: int
    shard: int
    part: float


class FsdpEngine:
    """A model under torch at one layout of several processes."""

    def __init__(self, spec: EngineSpec, mesh: Mesh) -> None:
        self.spec, self.mesh, self.device = spec, mesh, mesh.device
        self.dtype = model_dtype(spec.precision.name)
        self.clock, self.cut = Clock(spec.seed), cut_for(mesh)
        self.layers = layers_for(mesh, torch.float32, self.clock, spec.kernels, spec.precision.products)
        self._loss = WeightedLoss(self.layers.loss(), spec.reweight, mesh, spec.loss)
        self.replicas = mesh.config.data_replicas if mesh.config.zero_stage else mesh.config.replicas
        self.stages = stage_count(mesh.config)
        self.dense = self._spread(1)
        self.expert = self._spread(mesh.config.expert) if mesh.config.expert > 1 else self.dense
        self.modules = {stage: self._build_stage(stage) for stage in stages_of(mesh.config, mesh.place.pipeline)}
        compile_blocks((block for module in self.modules.values() for block in module.blocks), mesh.config)
        self.shards = [shard for module in self.modules.values() for shard in self._materialise(module)]
        self.parameters = self.named_parameters()
        self.layers.routing.place(self.device)
        self.optimizer = spec.optimizer([(shard.name, shard.master) for shard in self.shards if shard.master.numel()])
        ensure_state(self.optimizer)
        self.scale = LossScale(spec.precision)
        self.pipeline = self._build_pipeline() if self.stages > 1 else None
        self._batch: Batch | None = None
        self._factor = 0.0
        self._losses = torch.zeros((), device=self.device)

    # What the loop asks for -----------------------------------------------------------------------------------------

    def step(self, batch: Batch, learning_rate: float, *, formats: bool = False) -> StepResult:
        rows, count = self.spec.cut(batch)
        for module in self.modules.values():
            module.train()
        batch = self._share(batch, training=True)
        valid = self.mesh.sum_over_data(float(batch.weights.sum()))
        self._batch, self._factor = batch, self.scale.factor * self.mesh.config.replicas / valid
        # FSDP2 means over replicas, of which context ranks hold parts of one micro-batch
        self.layers.routing.start(self.scale.factor * self.mesh.config.context / count)
        self.layers.health.start(recording=formats)
        self._losses.zero_()
        if self.pipeline is None:
            self._run_plain(batch, rows)
        else:
            self.pipeline.step(sent(batch.inputs, self.device), rows)
        self._take_gradients()
        loss_sum, squares = self._sum_over_world(float(self._losses), self._squares())
        norm = math.sqrt(squares) / self.scale.factor if math.isfinite(squares) else math.inf
        skipped = not math.isfinite(norm)
        if not skipped:
            factor = clip_factor(norm, self.spec.clip_norm) / self.scale.factor
            gradients = [shard.master.grad for shard in self.shards if shard.master.grad is not None]
            clipped_step(self.optimizer, gradients, factor, learning_rate)
        for shard in self.shards:
            shard.master.grad = shard.sharded.grad = None
        self.scale.adapt(skipped)
        routing = finish_routing(self.layers.routing, self.spec.model, self.mesh, skipped=skipped)
        counted = finish_formats(self.layers.health, self.mesh)
        return StepResult(loss_sum, valid, norm, skipped, routing, counted)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[float, float]:
        rows, _ = self.spec.cut(batch)
        batch = self._share(batch, training=False)
        total = torch.zeros((), dtype=torch.float64, device=self.device)  # nobody waits for single micro-batches
        for micro in micro_batches(batch, rows):
            output = self._forward(micro.inputs)
            if output is not None:
                total += self._weighted(output, micro.targets, micro.weights)
        self._reshard()
        return self._sum_over_world(float(total), 0.0)[0], self.mesh.sum_over_data(float(batch.weights.sum()))

    @torch.no_grad()
    def next_logits(self, tokens: Tensor, position: int, documents: Tensor | None = None) -> Tensor:
        start_clock(self.clock, self.spec.model, Batch(tokens, tokens, tokens, 0, documents), self.device)
        logits = logits_at(self._forward(self.cut.take(tokens)), position, tokens.shape[1], self.mesh)
        self._reshard()
        size = (tokens.shape[0], self.spec.model.padded_vocab)
        found = torch.empty(size, dtype=torch.float32, device=self.device) if logits is None else logits
        if self.pipeline is not None:
            last = owner(self.mesh.config, self.stages - 1)
            dist.broadcast(found, group=self.mesh.pipeline_group, group_src=last)
        return same_on_replicas(found, self.mesh)

    def named_parameters(self) -> NamedParameters:
        return [(shard.name, shard.master) for shard in self.shards]

    def pieces(self, *, for_saving: bool, weights_only: bool = False) -> list[Piece]:
        found: list[Piece] = []
        for index, shard in enumerate(self.shards):
            if not shard.master.numel() or (for_saving and not self._saves(index, shard)):
                continue
            state = {key: value.view(-1) for key, value in moments(self.optimizer, shard.master).items()}
            flat = shard.master.detach().view(-1)
            found += parameter_pieces(shard.name, shard.declared, flat, state, shard.start, weights_only)
        if not for_saving or (self.mesh.place.tensor == 0 and self.mesh.place.replica == 0):
            found += routing_pieces(self.layers.routing, self.spec.model)
        return found

    def state(self) -> dict[str, float]:
        return {"applied_steps": applied_steps(self.optimizer), **self.scale.state()}

    def loaded(self, state: dict[str, float]) -> None:
        set_applied_steps(self.optimizer, state.get("applied_steps", 0.0))
        self.scale.load(state)

    def close(self) -> None:
        self.pipeline = None

    # Building -------------------------------------------------------------------------------------------------------

    def _spread(self, experts: int) -> Spread:
        """How parameters lie over this rank's replicas, of which each `experts` neighbours hold others; 1 for dense ones."""
        config = self.mesh.config
        held = config.replicas // experts
        replicas = self.replicas if config.zero_stage else held
        shards = held // replicas
        ranks = torch.arange(self.mesh.world_size).view(config.pipeline, replicas, shards, experts, config.tensor)
        names = ("pipeline", "replicas", "shards", "experts", "tensor")
        whole = DeviceMesh(self.device.type, ranks, mesh_dim_names=names)
        mesh = whole["replicas", "shards"] if replicas > 1 else whole["shards"]
        replica, shard = divmod(self.mesh.place.replica // experts, shards)
        return Spread(mesh, replicas, replica, shards, shard, 1 / experts)

    def _build_stage(self, stage: int) -> Decoder:
        """A stage on the meta device, cut by FSDP2: each layer by itself, what is left with the root."""
        spec, config = self.spec, self.mesh.config
        bounds = stage_bounds(spec.model, self.stages, spec.sequence_length)
        start, stop = bounds[stage], bounds[stage + 1]
        model = spec.model
        if start > 0 and stop == block_count(model):
            model = replace(model, tied_embeddings=False)  # a tied head far from its embedding has a copy of it
        with torch.device("meta"):
            module = Decoder(model, self.layers, start, stop, config.recompute)
        narrow = None if self.dtype == torch.float32 else self.dtype
        shard = partial(
            fully_shard,
            mp_policy=MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None),
            offload_policy=CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
            if config.offload_optimizer
            else OffloadPolicy(),
        )
        declared = [declaration(parameter) for _, parameter in named_parameters(iter(module.blocks))]
        keep = config.zero_stage != 3
        for block in module.blocks:  # a tied embedding is used at both ends, so it stays with the root
            if isinstance(block, DecoderLayer) and isinstance(block.feed_forward, MixtureOfExperts):
                shard(block.feed_forward.experts, mesh=self.expert.mesh, reshard_after_forward=not keep)
            if isinstance(block, DecoderLayer) or (isinstance(block, EmbeddingBlock | HeadBlock) and not module.tied):
                shard(block, mesh=self.dense.mesh, reshard_after_forward=not keep)
        shard(module, mesh=self.dense.mesh, reshard_after_forward=False)
        for (_, parameter), found in zip(named_parameters(iter(module.blocks)), declared, strict=True):
            parameter.declaration = found  # type: ignore[attr-defined]
        return module

    def _materialise(self, module: Decoder) -> list[Shard]:
        """Give a stage memory and initial weights: each rank makes and writes its own rows alone."""
        declared = [declaration(parameter) for _, parameter in named_parameters(iter(module.blocks))]
        module.to_empty(device="cpu" if self.mesh.config.offload_optimizer else self.device)
        for group in groups_of(module):
            group.lazy_init()  # pads shards now, not at the first step: from here on their memory stays where it is
        return [
            self._shard(name, parameter, found)
            for (name, parameter), found in zip(named_parameters(iter(module.blocks)), declared, strict=True)
        ]

    def _shard(self, name: str, sharded: nn.Parameter, declared: Declaration) -> Shard:
        assert isinstance(sharded, DTensor)
        copy = self.spec.model.tied_embeddings and name == HEAD
        name = EMBEDDING if copy else name
        master = nn.Parameter(sharded.to_local().detach())
        master.declaration = declared  # type: ignore[attr-defined]
        over = self.expert if declared.expert else self.dense
        rows = -(-declared.local_shape[0] // over.shards)  # as torch.chunk cuts
        first = min(rows * over.shard, declared.local_shape[0])
        if master.numel():
            rounded = torch.empty_like(
                master, dtype=self.dtype
            )  # every engine begins with weights that its model can hold
            initialise(rounded, name, self.spec.seed, declared, (first, *[0] * (master.dim() - 1)))
            master.data.copy_(rounded)
        return Shard(name, declared, sharded, master, first * math.prod(declared.local_shape[1:]), copy, over)

    def _build_pipeline(self) -> Pipeline:
        return Pipeline(
            self.mesh, dict(self.modules), self._stage_loss, between=self._between, ends=self._ends, dtype=self.dtype
        )

    def _between(self, rows: int, length: int) -> tuple[int, ...]:
        """Shape of what stages pass on of a micro-batch of tokens [rows, length]."""
        share = self.mesh.config.tensor if self.mesh.config.sequence_parallel else 1
        return length // share, rows, self.spec.model.hidden_size

    def _ends(self, rows: int, length: int) -> Tensor:
        """Shape and type of a micro-batch's logits on this rank, or of its losses."""
        shape = length - self.spec.model.encoder_length, rows
        if self.spec.loss.fused:
            return torch.empty(shape, dtype=torch.float32, device="meta")
        share = self.spec.model.padded_vocab // self.mesh.config.tensor
        return torch.empty(*shape, share, dtype=self.dtype, device="meta")

    def _saves(self, index: int, shard: Shard) -> bool:
        """Whether this rank writes its rows: one rank of the tensor axis for whole parameters, replicas take turns."""
        if shard.copy or (shard.declared.whole_on_each and self.mesh.place.tensor != 0):
            return False
        return index % shard.over.replicas == shard.over.replica

    # Stepping -------------------------------------------------------------------------------------------------------

    def _share(self, batch: Batch, *, training: bool) -> Batch:
        """This rank's positions of a batch, of which the clock is told whole."""
        asked = self._loss.asked(batch, self.spec.model, training=training)
        start_clock(self.clock, self.spec.model, batch, self.device, asked)
        return self.cut.batch(batch)

    def _run_plain(self, batch: Batch, rows: int) -> None:
        (module,) = self.modules.values()
        assert isinstance(module, FSDPModule)
        last = batch.inputs.shape[0] // rows - 1
        for index, micro in enumerate(micro_batches(batch, rows)):
            # ZeRO 2 and 3 keep no whole gradients between micro-batches; below that they are reduced once
            module.set_requires_gradient_sync(index == last or self.mesh.config.zero_stage >= 2)
            loss = self._weighted(module(sent(micro.inputs, self.device)), micro.targets, micro.weights)
            self._losses += loss.detach()
            (loss * self._factor).backward()

    def _stage_loss(self, output: Tensor, rows: Tensor) -> Tensor:
        assert self._batch is not None
        rows = rows.to(self._batch.targets.device)
        loss = self._weighted(output, self._batch.targets[rows], self._batch.weights[rows])
        self._losses += loss.detach()
        return loss * self._factor

    def _weighted(self, output: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        training = any(module.training for module in self.modules.values())
        return self._loss(output, sent(targets, self.device), sent(weights, self.device), training=training)

    def _forward(self, tokens: Tensor) -> Tensor | None:
        for module in self.modules.values():
            module.eval()
        tokens = sent(tokens, self.device)
        if self.pipeline is not None:
            return self.pipeline.forward(tokens)
        (module,) = self.modules.values()
        return module(tokens)

    def _reshard(self) -> None:
        """After a pass without backward the root's parameters are still whole, and would miss the next update."""
        for module in self.modules.values():
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()

    def _take_gradients(self) -> None:
        """Hand the shards' gradients to the masters."""
        for shard in self.shards:
            gradient = shard.sharded.grad
            shard.master.grad = gradient.to_local() if isinstance(gradient, DTensor) else torch.zeros_like(shard.master)
            if shard.over.part != 1.0:
                shard.master.grad.mul_(shard.over.part)
        self._sum_tied()

    def _squares(self) -> float:
        """What this rank adds to the squared norm, in which every element counts once; NaN where anything is not finite."""
        once: list[Tensor] = []
        again: list[Tensor] = []
        for shard in self.shards:
            whole_elsewhere = shard.declared.whole_on_each and self.mesh.place.tensor != 0
            assert shard.master.grad is not None
            (again if shard.copy or whole_elsewhere or shard.over.replica else once).append(shard.master.grad)
        return squared_norm(once) + 0.0 * squared_norm(again)  # 0 times infinity is not a number

    def _sum_tied(self) -> None:
        """Add the gradients of a tied embedding and its copy, which then stay equal bitwise."""
        if not self.spec.model.tied_embeddings or self.pipeline is None:
            return
        tied = [shard.master.grad for shard in self.shards if shard.name == EMBEDDING]
        if len(tied) == 2:  # a V puts the first and the last stage on one rank
            total = tied[0] + tied[1]
            for gradient in tied:
                gradient.copy_(total)
        elif tied:
            first, last = owner(self.mesh.config, 0), owner(self.mesh.config, self.stages - 1)
            peer = last if self.mesh.place.pipeline == first else first
            ours = tied[0].to(self.device, copy=True)  # offloaded gradients are on the CPU
            theirs, group = torch.empty_like(ours), self.mesh.pipeline_group
            operations = [
                dist.P2POp(dist.isend, ours, group=group, group_peer=peer),
                dist.P2POp(dist.irecv, theirs, group=group, group_peer=peer),
            ]
            for work in dist.batch_isend_irecv(operations):
                work.wait()
            tied[0].copy_(ours + theirs)

    def _sum_over_world(self, loss_sum: float, squares: float) -> tuple[float, float]:
        """(losses of all replicas, squares of all ranks): every rank of the last stage's tensor axis has the same loss."""
        here = self.stages - 1 in self.modules and self.mesh.place.tensor == 0
        found = torch.tensor([loss_sum if here else 0.0, squares], dtype=torch.float64, device=self.device)
        dist.all_reduce(found)
        return float(found[0]), float(found[1])
