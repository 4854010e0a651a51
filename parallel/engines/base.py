"""The Engine seam: everything the loop may ask of DeepSpeed or torch, and the arithmetic they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.formats.telemetry import LayerFormats
from models.loss import LossConfig
from models.moe.telemetry import LayerRouting
from models.objectives.config import ReweightConfig
from parallel.checkpoint.pieces import Piece
from parallel.config import ParallelConfig, PrecisionConfig
from parallel.shapes import micro_batch_rows

NamedParameters = list[tuple[str, nn.Parameter]]
OptimizerFactory = Callable[[NamedParameters], torch.optim.Optimizer]


@dataclass(frozen=True)
class Batch:
    """This data rank's sequences of one global batch.

    inputs, targets: int64 [R, S]; weights: float32 [R, S], how much each target counts; first_sample: global index of
    the first row. Rows are cut into micro-batches in order. documents: int64 [R, S], the document of each token, or None for
    those that end where the model's `document_end` stands; prefix: bool [R, S], tokens that their whole document sees, or None.
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    first_sample: int
    documents: Tensor | None = None
    prefix: Tensor | None = None


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step found: sums over the global batch, the norm before clipping, each mixture layer's routing, and
    what became of operands in block formats, where that was asked for."""

    loss_sum: float
    valid_tokens: float
    grad_norm: float
    skipped: bool
    routing: tuple[LayerRouting, ...] = ()
    formats: tuple[LayerFormats, ...] = ()

    @property
    def loss(self) -> float:
        """Nats per valid token."""
        return self.loss_sum / self.valid_tokens


@dataclass(frozen=True)
class EngineSpec:
    """All that an engine is built from.

    micro_batch: sequences of `sequence_length` that go through the model at once; of another length as many as have no more
    tokens. micro_batches: how many of them the first step has, a hint: batches may have any shape that
    `parallel.shapes.check_shapes` lets through, another one in each step. sequence_length is also what the stages of a pipeline
    are balanced for. master: what updates are added to below fp32, `float32` or `none`, the model's own weights.
    kernels: of `models.kernels.choice.CHOICES`.
    """

    model: ModelConfig
    parallel: ParallelConfig
    precision: PrecisionConfig
    optimizer: OptimizerFactory
    clip_norm: float
    micro_batch: int
    micro_batches: int
    sequence_length: int
    seed: int
    reweight: ReweightConfig = ReweightConfig()
    master: str = "float32"
    kernels: str = "auto"
    loss: LossConfig = LossConfig()

    def cut(self, batch: Batch) -> tuple[int, int]:
        """(sequences in each micro-batch of a batch whose sequences are whole, how many there are). A ragged last one would
        give its tokens another weight: callers make batches that divide."""
        rows = micro_batch_rows(self.micro_batch, self.sequence_length, batch.inputs.shape[1])
        count, rest = divmod(batch.inputs.shape[0], rows)
        assert count and not rest, (tuple(batch.inputs.shape), rows)
        assert not batch.weights[:, : self.model.encoder_length].any(), "what the encoder reads predicts nothing"
        return rows, count


class Engine(Protocol):
    """One model being trained at one layout."""

    def step(self, batch: Batch, learning_rate: float, *, formats: bool = False) -> StepResult:
        """Forward, backward, clip, update; a non-finite gradient anywhere skips the update everywhere. All data ranks give as
        many rows, and as long; the next step may have more or fewer of them, longer or shorter. formats: count what becomes of
        operands in block formats; layers may not be compiled then."""

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        """(loss sum in nats, valid tokens) over all replicas, without gradients."""

    def next_logits(self, tokens: Tensor, position: int, documents: Tensor | None = None) -> Tensor:
        """Logits float32 [B, V] after tokens [B, S] up to and including `position`, of these documents int64 [B, S] or such as
        the tokens themselves tell; the same on every rank."""

    def named_parameters(self) -> NamedParameters:
        """Logical name and local parameter of everything this rank holds."""

    def pieces(self, *, for_saving: bool, weights_only: bool = False) -> list[Piece]:
        """Live state. For saving: each piece on one rank of the world only; for loading: all that this rank holds."""

    def state(self) -> dict[str, float]:
        """Scalars that belong to the optimizer: applied steps, loss scale."""

    def loaded(self, state: dict[str, float]) -> None:
        """Pieces were written to and `state` is the saved one: make everything derived from them agree."""

    def close(self) -> None:
        """Release memory and hooks."""


def model_dtype(precision: str) -> torch.dtype:
    """dtype of the parameters that enter matrix products."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def resolve_precision(config: PrecisionConfig, device: torch.device) -> PrecisionConfig:
    """Turn `auto` into bf16 where the device multiplies it natively, else fp32."""
    if config.name != "auto":
        return config
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return replace(config, name="bf16" if native else "fp32")


def micro_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Cut a batch into micro-batches of `size` rows, in order."""
    for start in range(0, batch.inputs.shape[0], size):
        rows = slice(start, start + size)
        yield Batch(batch.inputs[rows], batch.targets[rows], batch.weights[rows], batch.first_sample + start)


def squared_norm(gradients: list[Tensor]) -> float:
    """Sum of squares of some gradients in float32 norms."""
    if not gradients:
        return 0.0
    norms = torch._foreach_norm([gradient.float() for gradient in gradients])
    return float(torch.stack(list(norms)).square().sum())


def clip_factor(norm: float, limit: float) -> float:
    """What gradients are multiplied by so that their norm does not exceed `limit`; 0 means no limit."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 and math.isfinite(norm) else 1.0


def ensure_state(optimizer: torch.optim.Optimizer) -> None:
    """Create the moments of torch's Adam or SGD before the first step, so that they can be loaded and linked."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if state:
                continue
            if "betas" in group:
                state["step"] = torch.zeros((), dtype=torch.float32)
                wide = torch.promote_types(parameter.dtype, torch.float32)
                for moment in ("exp_avg", "exp_avg_sq"):
                    state[moment] = torch.zeros_like(parameter, dtype=wide, requires_grad=False)
            elif group.get("momentum", 0) > 0:
                state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The optimizer's tensors of one parameter that have its shape, by name."""
    state = optimizer.state[parameter]
    return {key: value for key, value in state.items() if torch.is_tensor(value) and value.shape == parameter.shape}


def applied_steps(optimizer: torch.optim.Optimizer) -> float:
    """How many updates an Adam has applied; 0 for optimizers that do not count."""
    for state in optimizer.state.values():
        if "step" in state:
            return float(state["step"])
    return 0.0


def set_applied_steps(optimizer: torch.optim.Optimizer, steps: float) -> None:
    """Set Adam's counter of every parameter."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(steps)


@runtime_checkable
class OnePass(Protocol):
    """An optimizer that does within its own pass over memory what would else take a pass each."""

    def step_clipped(self, factor: float) -> None:
        """A step with all gradients multiplied by a factor."""

    def keep_copy(self, master: Tensor, copy: Tensor) -> bool:
        """Whether every step from now on writes this copy of a parameter too; if not, the engine does."""


def clipped_step(optimizer: torch.optim.Optimizer, gradients: list[Tensor], factor: float, rate: float) -> None:
    """A step at a learning rate with gradients multiplied by a factor, in place or on the way."""
    set_learning_rate(optimizer, rate)
    if isinstance(optimizer, OnePass):
        optimizer.step_clipped(factor)
        return
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group; a group may scale it by its own `rate_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)
