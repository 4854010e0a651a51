"""Which engine runs a recipe, and which combinations each refuses by name."""

from __future__ import annotations

from dataclasses import replace

from parallel.config import ParallelConfig, ParallelError, PrecisionConfig
from parallel.engines.base import Engine, EngineSpec
from parallel.mesh import Mesh


def choose_engine(config: ParallelConfig, world_size: int) -> tuple[ParallelConfig, str]:
    """Resolve `auto`; returns the configuration and the reason in words."""
    if config.engine != "auto":
        return config, "as the recipe says"
    if world_size == 1 and config.zero_stage <= 1 and not config.offload_optimizer:
        return replace(config, engine="torch"), "one process needs no sharding"
    return replace(config, engine="deepspeed"), f"{world_size} processes"


def check_engine(config: ParallelConfig, precision: PrecisionConfig, device: str, world_size: int) -> None:
    """Refuse combinations that an engine cannot do, before any process starts. precision: resolved, not auto."""
    if config.engine == "torch":
        if world_size > 1:
            raise ParallelError(
                f"parallel.engine=torch: runs one process, the layout has {world_size}; set parallel.engine=deepspeed"
            )
        if config.zero_stage > 1 or config.offload_optimizer:
            option = (
                f"parallel.zero_stage={config.zero_stage}"
                if config.zero_stage > 1
                else "parallel.offload_optimizer=true"
            )
            raise ParallelError(f"{option}: has no effect with parallel.engine=torch; set parallel.engine=deepspeed")
        return
    if precision.name == "fp16" and device == "cpu":
        raise ParallelError(
            "precision.name=fp16: DeepSpeed refuses it on CPU; set precision.name=bf16, or parallel.engine=torch for one "
            "process"
        )
    if precision.name != "fp32" and config.zero_stage == 0:
        raise ParallelError(
            f"parallel.zero_stage=0: with precision.name={precision.name} DeepSpeed keeps float32 master weights only in "
            "sharded form; set parallel.zero_stage=1"
        )


def build_engine(spec: EngineSpec, mesh: Mesh) -> Engine:
    """Build the engine a resolved configuration names."""
    if spec.parallel.engine == "torch":
        from parallel.engines.torch import TorchEngine

        return TorchEngine(spec, mesh)
    from parallel.engines.deepspeed import DeepSpeedEngine  # imports deepspeed, seconds that one process need not pay

    return DeepSpeedEngine(spec, mesh)
