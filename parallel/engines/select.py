"""From a resolved configuration to the engine it names."""

from __future__ import annotations

from parallel.check import check_engine, choose_engine
from parallel.engines.base import Engine, EngineSpec
from parallel.mesh import Mesh

__all__ = ["build_engine", "check_engine", "choose_engine"]


def build_engine(spec: EngineSpec, mesh: Mesh) -> Engine:
    """Build the engine a resolved configuration names."""
    if spec.parallel.engine == "torch" and mesh.world_size > 1:
        from parallel.engines.fsdp import FsdpEngine

        return FsdpEngine(spec, mesh)
    if spec.parallel.engine == "torch":
        from parallel.engines.torch import TorchEngine

        return TorchEngine(spec, mesh)
    from parallel.engines.deepspeed import DeepSpeedEngine  # imports deepspeed, seconds that one process need not pay

    return DeepSpeedEngine(spec, mesh)
