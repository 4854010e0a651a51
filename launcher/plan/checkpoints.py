"""What a checkpoint takes: its bytes by part, the share of the rank that writes most, and how long a save holds training up.

A checkpoint has every element of the state once, whatever the layout (`parallel.checkpoint`): master weights and moments in
float32, and of some mixtures what the routers remember. Files have headers, indexes and a manifest beside that: names and
checksums, some hundred bytes a tensor, which nothing here counts."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from launcher.config import OptimizerConfig
from launcher.plan.parameters import Parameter, stages_on
from launcher.plan.state import FLOAT, MOMENTS
from launcher.plan.work import Work
from models.config import ModelConfig, count_parameters
from parallel.check import choose_engine
from parallel.config import ParallelConfig

HOST_BANDWIDTH = 25e9
"""Bytes a second from a GPU to pinned host memory: 0.8 of the 31.5 GB/s that PCI Express 4.0 x16 carries by its
specification."""
WRITE_BANDWIDTH = 0.71e9
"""Bytes a second and node into a shared file system: the 273 GB/s at which 384 nodes saved a model of a trillion parameters
(Narayanan et al., arXiv 2104.04473, section 5.10)."""


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of a checkpoint's data. widest: of the rank that writes most, which all wait for."""

    weights: int
    moments: int
    routing: int
    widest: int

    @property
    def total(self) -> int:
        """All ranks' together."""
        return self.weights + self.moments + self.routing


@dataclass(frozen=True)
class Stall:
    """Seconds of one save. held: training waits; write: until it is committed, in the background or not."""

    held: float
    write: float


def checkpoint_size(work: Work, parallel: ParallelConfig) -> CheckpointSize:
    """Of the state of a run at a layout. parallel: resolved, no `data=0`."""
    if parallel.engine == "auto":
        parallel = choose_engine(parallel, parallel.model_parallel * parallel.data)[0]
    count, wide = count_parameters(work.model), _width(work)
    moments = FLOAT * _moments(work.optimizer)
    routing = _routing(work.model)
    element = wide + moments
    widest = max(_widest(work, parallel, rank) * element + (routing if rank == 0 else 0) for rank in _ends(parallel))
    return CheckpointSize(wide * count, moments * count, routing, widest)


def stall_of(
    size: CheckpointSize,
    *,
    nodes: int = 1,
    asynchronous: bool = True,
    between: float = float("inf"),
    host_bandwidth: float = HOST_BANDWIDTH,
    write_bandwidth: float = WRITE_BANDWIDTH,
) -> Stall:
    """How long a save takes. between: seconds from save to save, in which the one before must have ended, else training waits
    for it; host_bandwidth: bytes a second of a rank; write_bandwidth: of a node. Every rank copies what it writes, all at
    once; nodes write side by side."""
    copy = size.widest / host_bandwidth
    write = copy + size.total / (nodes * write_bandwidth)
    if not asynchronous:
        return Stall(write, write)
    return Stall(copy + max(0.0, write - copy - between), write)


def _width(work: Work) -> int:
    """Bytes of a saved weight: masters are float32, unless the model's own weights are what is stepped."""
    return work.size if work.optimizer.master == "none" else FLOAT


def _moments(optimizer: OptimizerConfig) -> int:
    return MOMENTS[optimizer.name] if optimizer.name == "adamw" or optimizer.beta1 else 0


def _routing(model: ModelConfig) -> int:
    """Float32 for each expert of each mixture layer: the bias in its choice, and the shares of choices in the step before."""
    kept = (model.moe.bias_rate > 0) + model.moe.keeps_frequencies
    return FLOAT * kept * model.moe.experts * sum(model.has_experts(layer) for layer in range(model.layers))


def _ends(parallel: ParallelConfig) -> list[int]:
    """Ranks of the pipeline axis that may write most: those with the embedding or the head, and one between."""
    return sorted({0, parallel.pipeline // 2, parallel.pipeline - 1})


def _widest(work: Work, parallel: ParallelConfig, rank: int) -> int:
    """Elements that the fullest rank at a place of the pipeline axis saves: rank 0 of the tensor axis, which saves what all
    of them hold whole, too. A copy of a tied embedding is not saved."""
    model = work.model
    found: list[Parameter] = []
    for stage in stages_on(model, parallel, rank, work.sequence_length):
        blocks = stage.parameters(model, parallel.tensor, parallel.expert)
        found += [one for block in (blocks[:-1] if stage.copy else blocks) for one in block]
    replicas = parallel.replicas
    if parallel.zero_stage == 0:  # those that hold the same take turns, parameter by parameter
        return _turns(found, replicas)
    if parallel.engine == "torch":
        return _by_rows(found, parallel)
    over = {True: max(1, replicas // parallel.expert), False: replicas}
    return sum(-(-one.count // over[one.expert]) for one in found)


def _turns(parameters: list[Parameter], ranks: int) -> int:
    taken = [0] * ranks
    for index, one in enumerate(parameters):
        taken[index % ranks] += one.count
    return max(taken)


def _by_rows(parameters: list[Parameter], parallel: ParallelConfig) -> int:
    """Rows of each parameter, of which replicas take turns with those that hold the same."""
    taken = [0] * parallel.data_replicas
    for index, one in enumerate(parameters):
        shards = parallel.replicas // (parallel.expert if one.expert else 1) // parallel.data_replicas
        rows = -(-one.shape[0] // max(1, shards))
        taken[index % parallel.data_replicas] += rows * prod(one.shape[1:])
    return max(taken)
