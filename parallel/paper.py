"""A layout on paper: the real mesh and the real blocks of any rank of any world, in one process and without storage.

Process groups come from torch's fake backend, parameters live on the meta device. What is counted here is therefore what
a rank of the real world would hold, not an estimate of it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
import torch.distributed as dist

from models.config import ModelConfig
from models.decoder import Decoder, named_parameters
from models.parameters import Declaration, declaration
from models.random import Clock
from parallel.check import check_model, resolve_world
from parallel.checkpoint.cuts import declared
from parallel.config import ParallelConfig, ParallelError
from parallel.layers import layers_for
from parallel.mesh import Mesh, Place
from parallel.schedule import stage_count, stages_of
from parallel.stages import stage_bounds


@dataclass(frozen=True)
class PaperRank:
    """What one rank holds. blocks: [start, stop) of the decoder for each of its stages; shapes: of every parameter here."""

    rank: int
    place: Place
    blocks: tuple[tuple[int, int], ...]
    shapes: dict[str, tuple[int, ...]]
    cut: frozenset[str]  # parameters that are shares of a logical tensor; the others every tensor rank holds whole
    of_experts: frozenset[str]  # parameters that the expert axis cuts

    @property
    def experts(self) -> int:
        """Of these, parameters of routed experts."""
        return sum(torch.Size(shape).numel() for name, shape in self.shapes.items() if name in self.of_experts)

    @property
    def held(self) -> int:
        """Parameters on this rank before ZeRO cuts them."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())


def build_rank(
    model: ModelConfig, parallel: ParallelConfig, world_size: int, rank: int, sequence_length: int
) -> PaperRank:
    """Build one rank of a world of `world_size` on the meta device.

    Must not be called while a real process group is up. ParallelError where the layout does not divide world or model.
    """
    if dist.is_initialized():
        raise ParallelError("a layout on paper needs a process without process groups; use another process")
    parallel = resolve_world(parallel, world_size)
    check_model(parallel, model, sequence_length)
    _join_fake_world(rank, world_size)
    try:
        mesh = Mesh(parallel, torch.device("cpu"))
        layers = layers_for(mesh, torch.bfloat16, Clock(0))
        last = stage_count(parallel) - 1
        bounds = stage_bounds(model, last + 1, sequence_length)
        stages = stages_of(parallel, mesh.place.pipeline)
        spans = tuple((bounds[stage], bounds[stage + 1]) for stage in stages)
        with torch.device("meta"):
            parts = [Decoder(model, layers, start, stop, parallel.recompute) for start, stop in spans]
            found = [pair for part in parts for pair in named_parameters(iter(part.blocks))]
            if model.tied_embeddings and last > 0 and last in stages:
                copy = Decoder(model, layers, 0, 1)
                found += [(f"{name} (copy)", parameter) for name, parameter in named_parameters(iter(copy.blocks))]
        mesh.close()
    finally:
        dist.destroy_process_group()
    shapes = {name: tuple(parameter.shape) for name, parameter in found}
    cut = frozenset(name for name, parameter in found if not declaration(parameter).whole_on_each)
    of_experts = frozenset(name for name, parameter in found if declaration(parameter).expert)
    return PaperRank(rank, mesh.place, spans, shapes, cut, of_experts)


def declared_on_paper(model: ModelConfig, tensor: int) -> dict[str, tuple[int, Declaration]]:
    """Parameter -> (index of its block, how tensor rank 0 of so many holds it). No process group may be up."""
    _join_fake_world(0, tensor)
    try:
        mesh = Mesh(ParallelConfig(tensor=tensor, data=1), torch.device("cpu"))
        found = declared(model, layers_for(mesh, torch.float32, Clock(0)))
        mesh.close()
    finally:
        dist.destroy_process_group()
    return found


def _join_fake_world(rank: int, world_size: int) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
