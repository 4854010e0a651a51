"""How a model is laid over processes, and the numbers it is trained in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.precision import UNQUANTISED, ProductsConfig
from parallel.schedule import SCHEDULES

ENGINES = ("auto", "deepspeed", "torch")
CONTEXT_METHODS = ("ring", "ulysses")


class ParallelError(ValueError):
    """A layout that cannot be: the message names the option, the value, the limit and the cure."""


@dataclass(frozen=True)
class ParallelConfig:
    """Degrees of the axes and the engine that runs them."""

    engine: str = "auto"
    """deepspeed, torch, or auto: torch for one process and for what DeepSpeed cannot do, else deepspeed."""
    tensor: int = 1
    """Tensor axis: processes that share every matrix."""
    pipeline: int = 1
    """Pipeline axis: consecutive stages of the model."""
    data: int = 0
    """Data axis: replicas that see different samples; 0 takes what the world leaves."""
    context: int = 1
    """Context axis: processes that share every sequence."""
    context_method: str = "ring"
    """How attention crosses the context axis: ring (keys and values go round) or ulysses (heads are cut instead)."""
    expert: int = 1
    """Expert axis: processes, of the data and context axes, that share the experts of a layer."""
    sequence_parallel: bool = False
    """Cut activations between the tensor-parallel regions along the sequence; needs tensor > 1."""
    zero_stage: int = 1
    """What the data and context axes shard: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters. deepspeed:
    ZeRO. torch: 0 is DDP, the others FSDP2: 1 reduces gradients once a step, 1 and 2 keep whole parameters from forward to
    backward."""
    data_replicas: int = 1
    """Replicas within the data axis, whose other part shards (hybrid sharding; torch engine)."""
    schedule: str = "1f1b"
    """Pipeline schedule: 1f1b (both engines), gpipe, interleaved_1f1b, interleaved_zero_bubble, zbv, dualpipev (torch)."""
    virtual_stages: int = 1
    """Stages on each rank of the pipeline axis, for interleaved schedules: 2 or more."""
    offload_optimizer: bool = False
    """Keep optimizer state and master weights in host memory (zero_stage 1 to 3; the torch engine parameters too)."""
    recompute: str = "none"
    """Activations computed again in backward: none, block (whole layers), selective (attention cores)."""
    compile: str = "none"
    """What goes through torch.compile: none, or block (each layer; one compilation serves all)."""
    timeout_seconds: int = 600
    """How long a collective may wait before the run is ended as hung."""

    def __post_init__(self) -> None:
        """Refuse what no world can hold."""
        if self.engine not in ENGINES:
            raise ParallelError(f"parallel.engine={self.engine}: choose one of {', '.join(ENGINES)}")
        for option in ("tensor", "pipeline", "context", "expert"):
            if getattr(self, option) < 1:
                raise ParallelError(f"parallel.{option}={getattr(self, option)}: must be at least 1")
        if self.data < 0:
            raise ParallelError(f"parallel.data={self.data}: must be at least 1, or 0 for what the world leaves")
        if self.context_method not in CONTEXT_METHODS:
            raise ParallelError(
                f"parallel.context_method={self.context_method}: choose one of {', '.join(CONTEXT_METHODS)}"
            )
        if self.context == 1 and self.context_method != "ring":
            raise ParallelError(
                f"parallel.context_method={self.context_method}: has no effect with parallel.context=1; set "
                "parallel.context above 1"
            )
        if self.zero_stage not in (0, 1, 2, 3):
            raise ParallelError(f"parallel.zero_stage={self.zero_stage}: choose 0, 1, 2 or 3")
        if self.recompute not in ("none", "block", "selective"):
            raise ParallelError(f"parallel.recompute={self.recompute}: choose none, block or selective")
        if self.compile not in ("none", "block"):
            raise ParallelError(f"parallel.compile={self.compile}: choose none or block")
        if self.sequence_parallel and self.tensor == 1:
            raise ParallelError(
                "parallel.sequence_parallel=true: has no effect with parallel.tensor=1; set it to false or tensor above 1"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ParallelError(
                "parallel.offload_optimizer=true: needs sharded optimizer state; set parallel.zero_stage to 1, 2 or 3"
            )

        self._check_schedule()
        if self.data_replicas < 1 or (self.data and self.data % self.data_replicas):
            raise ParallelError(
                f"parallel.data_replicas={self.data_replicas}: must divide parallel.data={self.data}; choose a divisor of it"
            )
        if self.data_replicas > 1 and self.zero_stage == 0:
            raise ParallelError(
                f"parallel.data_replicas={self.data_replicas}: has no effect with parallel.zero_stage=0, where the whole "
                "data axis replicates; set parallel.zero_stage=3"
            )

    def _check_schedule(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ParallelError(f"parallel.schedule={self.schedule}: choose one of {', '.join(SCHEDULES)}")
        if self.pipeline == 1 and self.schedule != "1f1b":
            raise ParallelError(
                f"parallel.schedule={self.schedule}: has no effect with parallel.pipeline=1; set parallel.pipeline above 1"
            )
        interleaved = SCHEDULES[self.schedule].stages == 0
        if interleaved and self.virtual_stages < 2:
            raise ParallelError(
                f"parallel.virtual_stages={self.virtual_stages}: parallel.schedule={self.schedule} interleaves stages of "
                "a rank; set it to 2 or more"
            )
        if not interleaved and self.virtual_stages != 1:
            raise ParallelError(
                f"parallel.virtual_stages={self.virtual_stages}: has no effect with parallel.schedule={self.schedule}; "
                "set it to 1"
            )

    @property
    def model_parallel(self) -> int:
        """Processes that share every sample."""
        return self.tensor * self.context * self.pipeline

    @property
    def least_data(self) -> int:
        """The data axis as it stands, or, left to the world, the shortest on which the expert axis fits."""
        return self.data or self.expert // math.gcd(self.expert, self.context)

    @property
    def replicas(self) -> int:
        """Ranks of a resolved layout that hold the same parameters, or share them out by ZeRO: data x context."""
        return self.data * self.context

    @property
    def degrees(self) -> str:
        """The axes of a resolved layout in words, those that not every run has only where they have a degree."""
        told = f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"
        told += f" x context {self.context}" if self.context > 1 else ""
        return told + (f" (expert {self.expert})" if self.expert > 1 else "")

    def places(self, rank: int) -> dict[str, int]:
        """A rank's place on each axis of a resolved layout, by the names of `degrees`."""
        tensor, rest = rank % self.tensor, rank // self.tensor
        replica, pipeline = rest % self.replicas, rest // self.replicas
        found = {"tensor": tensor, "data": replica // self.context, "pipeline": pipeline}
        found |= {"context": replica % self.context} if self.context > 1 else {}
        return found | ({"expert": replica % self.expert} if self.expert > 1 else {})


def describe_sharding(config: ParallelConfig, world_size: int) -> str:
    """How the data axis and the pipeline of a resolved layout are run, to be put behind the engine's name."""
    told = ""
    if config.engine == "deepspeed":
        told = f", ZeRO {config.zero_stage}"
    elif world_size > 1:
        told = ", DDP" if config.zero_stage == 0 else f", FSDP2 (ZeRO {config.zero_stage})"
    if config.data_replicas > 1:
        told += f" in {config.data_replicas} replicas"
    told += f", {config.schedule}" if config.pipeline > 1 else ""
    return told + (f", {config.context_method} attention" if config.context > 1 else "")


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
    products: ProductsConfig = UNQUANTISED
    """What the products of linear layers are quantised to."""

    def __post_init__(self) -> None:
        """Refuse unknown precisions."""
        if self.name not in PRECISIONS:
            raise ParallelError(f"precision.name={self.name}: choose one of {', '.join(PRECISIONS)}")
        if self.name == "fp16" and self.products.quantised:
            raise ParallelError(
                "precision.name=fp16: quantised products are exact in bfloat16 and float32 alone; set precision.name=bf16"
            )
        for option in ("initial_loss_scale_power", "loss_scale_window"):
            value = getattr(self, option)
            if value < 1:
                raise ParallelError(f"precision.{option}={value}: must be at least 1")
            if self.name != "fp16" and value != getattr(PrecisionConfig, option):
                raise ParallelError(
                    f"precision.{option}={value}: has no effect with precision.name={self.name}; leave it out or set "
                    "precision.name=fp16"
                )
