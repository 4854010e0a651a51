"""From a resolved configuration to the engine it names."""

from __future__ import annotations

from collections.abc import Callable

from parallel.check import check_engine, choose_engine
from parallel.config import ParallelConfig
from parallel.engines.base import Engine, EngineSpec
from parallel.mesh import Mesh

__all__ = ["build_engine", "check_engine", "choose_engine", "engine_class"]


def build_engine(spec: EngineSpec, mesh: Mesh) -> Engine:
    """Build the engine a resolved configuration names."""
    return engine_class(spec.parallel, mesh.world_size)(spec, mesh)


def engine_class(config: ParallelConfig, world_size: int) -> Callable[[EngineSpec, Mesh], Engine]:
    """What a resolved configuration names, imported now: deepspeed alone costs seconds that not every process need pay."""
    if config.engine == "torch" and world_size > 1:
        from parallel.engines.fsdp import FsdpEngine

        return FsdpEngine
    if config.engine == "torch":
        from parallel.engines.torch import TorchEngine

        return TorchEngine
    from parallel.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine
