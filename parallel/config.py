"""How a model is laid over processes, and the numbers it is trained in."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES = ("auto", "deepspeed", "torch")


class ParallelError(ValueError):
    """A layout that cannot be: the message names the option, the value, the limit and the cure."""


@dataclass(frozen=True)
class ParallelConfig:
    """Degrees of the three axes and the engine that runs them."""

    engine: str = "auto"
    """deepspeed (any layout), torch (one process, plain PyTorch: the reference), or auto: torch for one process."""
    tensor: int = 1
    """Tensor axis: processes that share every matrix."""
    pipeline: int = 1
    """Pipeline axis: consecutive stages of the model."""
    data: int = 0
    """Data axis: replicas that see different samples; 0 takes what the world leaves."""
    sequence_parallel: bool = False
    """Cut activations between the tensor-parallel regions along the sequence; needs tensor > 1."""
    zero_stage: int = 1
    """DeepSpeed ZeRO over the data axis: 0 replicates, 1 shards optimizer state, 2 also gradients, 3 also parameters."""
    offload_optimizer: bool = False
    """Keep optimizer state and master weights in host memory (ZeRO 1 to 3)."""
    recompute: str = "none"
    """Activations computed again in backward: none, block (whole layers), selective (attention cores)."""
    timeout_seconds: int = 600
    """How long a collective may wait before the run is ended as hung."""

    def __post_init__(self) -> None:
        """Refuse what no world can hold."""
        if self.engine not in ENGINES:
            raise ParallelError(f"parallel.engine={self.engine}: choose one of {', '.join(ENGINES)}")
        for option in ("tensor", "pipeline"):
            if getattr(self, option) < 1:
                raise ParallelError(f"parallel.{option}={getattr(self, option)}: must be at least 1")
        if self.data < 0:
            raise ParallelError(f"parallel.data={self.data}: must be at least 1, or 0 for what the world leaves")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ParallelError(f"parallel.zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        if self.recompute not in ("none", "block", "selective"):
            raise ParallelError(f"parallel.recompute={self.recompute}: choose none, block or selective")
        if self.pipeline > 1 and self.zero_stage > 1:
            raise ParallelError(
                f"parallel.zero_stage={self.zero_stage}: with parallel.pipeline={self.pipeline} gradients must stay "
                "whole until the last micro-batch, so the limit is 1; set parallel.zero_stage=1"
            )
        if self.sequence_parallel and self.tensor == 1:
            raise ParallelError(
                "parallel.sequence_parallel=true: has no effect with parallel.tensor=1; set it to false or tensor above 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ParallelError(
                "parallel.offload_optimizer=true: needs sharded optimizer state; set parallel.zero_stage to 1, 2 or 3"
            )

    @property
    def model_parallel(self) -> int:
        """Processes that hold one replica of the model."""
        return self.tensor * self.pipeline


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class PrecisionConfig:
    """The numbers a model is trained in; master weights and optimizer state are float32 always."""

    name: str = "auto"
    """fp32, bf16, fp16 (dynamic loss scale), or auto: bf16 where the device multiplies it natively, else fp32."""
    initial_loss_scale_power: int = 16
    """fp16 only: the loss scale begins at 2 to this power."""
    loss_scale_window: int = 1000
    """fp16 only: steps without overflow after which the loss scale doubles."""

    def __post_init__(self) -> None:
        """Refuse unknown precisions."""
        if self.name not in PRECISIONS:
            raise ParallelError(f"precision.name={self.name}: choose one of {', '.join(PRECISIONS)}")
        for option in ("initial_loss_scale_power", "loss_scale_window"):
            value = getattr(self, option)
            if value < 1:
                raise ParallelError(f"precision.{option}={value}: must be at least 1")
            if self.name != "fp16" and value != getattr(PrecisionConfig, option):
                raise ParallelError(
                    f"precision.{option}={value}: has no effect with precision.name={self.name}; leave it out or set "
                    "precision.name=fp16"
                )
