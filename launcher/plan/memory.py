"""Bytes that one rank needs, part by part, at any layout: arithmetic alone, quick enough to judge ten thousand.

    work = Work.of(recipe, "bf16")
    memory_of(work, parallel, micro_batch, rank)      # a rank of the pipeline axis
    fullest(work, parallel, micro_batch)              # the one that needs most

State is exact, activations are what the models' autograd functions save (`launcher.plan.state`, `.activations`); what a
framework takes for itself and what its allocator cannot use are allowances, kept apart."""

from __future__ import annotations

from dataclasses import dataclass, fields

from launcher.plan.flight import moments
from launcher.plan.held import again_by, batch_bytes, held_by, lingering, loss_bytes, received_into, setting_of
from launcher.plan.parameters import has_head, stages_on
from launcher.plan.state import state_of
from launcher.plan.work import Work as Work
from parallel.check import choose_engine
from parallel.config import ParallelConfig
from parallel.schedule import chunks_in_flight

CONTEXT_BYTES = 600_000_000
"""A CUDA context with the kernels of torch, cuBLAS and NCCL, before any tensor: an allowance. 0.5 to 0.7 GB is what
nvidia-smi shows beside torch.cuda.memory_reserved on recent data-centre GPUs."""
FRAGMENTS = 0.04
"""Share of what is allocated that the caching allocator holds and cannot give out: an allowance. Blocks are rounded up to 2
MB, and large ones are not split below that; measured shares of reserved but unallocated memory are 2 to 6 % in steady
training."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank.

    weights: parameters as the engine keeps them, gradients: at their most, optimizer: moments and master weights apart.
    gathered: whole copies of what is sharded. activations: what layers keep for backward of all micro-batches in flight.
    logits: what the head and the loss keep. working: what a step needs for a moment on top, where it needs most: gradients of
    logits, or a layer that is computed again. buffers: of communication, and the batch. framework, fragments: allowances.
    host: in host memory, not in the total."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    working: int
    buffers: int
    framework: int = 0
    fragments: int = 0
    host: int = 0

    @property
    def counted(self) -> int:
        """Without the allowances."""
        return self.total - self.framework - self.fragments

    @property
    def total(self) -> int:
        """All of it, allowances among it."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Name -> bytes of every part of the total, in the order of a stacked bar."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "host"}

    def line(self) -> str:
        """One line for people, in GB or MB."""
        told = ", ".join(f"{part} {human(size)}" for part, size in self.parts().items() if size)
        there = f"; {human(self.host)} in host memory" if self.host else ""
        return f"memory per rank about {human(self.total)}: {told}{there}"


def human(size: float) -> str:
    """Bytes in TB, in GB from a tenth of a GB on, else in MB."""
    if size >= 1e12:
        return f"{size / 1e12:.2f} TB"
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def memory_of(work: Work, parallel: ParallelConfig, micro_batch: int, rank: int = 0) -> Memory:
    """Memory of a rank of the pipeline axis, the fullest there of the other axes. parallel: resolved, no `data=0`; micro_batch:
    sequences that go through the model at once."""
    return _memory(work, _resolved(parallel), micro_batch, rank)


def fullest(work: Work, parallel: ParallelConfig, micro_batch: int) -> tuple[int, Memory]:
    """(rank of the pipeline axis that needs most, its memory). Ranks that hold alike need as much as they have in flight, so
    one of each kind is looked at."""
    parallel = _resolved(parallel)
    count = work.batch_sequences // (micro_batch * parallel.data)
    most: dict[tuple, tuple[int, int]] = {}
    for rank in range(parallel.pipeline):
        stages = stages_on(work.model, parallel, rank, work.sequence_length)
        alike = tuple((stage.kinds, stage.copy, stage.index > 0) for stage in stages)
        flight = chunks_in_flight(parallel, rank, count)
        if alike not in most or flight > most[alike][0]:
            most[alike] = flight, rank
    found = [(rank, _memory(work, parallel, micro_batch, rank)) for _, rank in most.values()]
    return max(found, key=lambda one: one[1].total)


def _resolved(parallel: ParallelConfig) -> ParallelConfig:
    if parallel.engine != "auto":
        return parallel
    return choose_engine(parallel, parallel.model_parallel * parallel.data)[0]


def _memory(work: Work, parallel: ParallelConfig, micro_batch: int, rank: int) -> Memory:
    count = work.batch_sequences // (micro_batch * parallel.data)
    stages = stages_on(work.model, parallel, rank, work.sequence_length)
    state = state_of(work.model, stages, parallel, work.size, work.optimizer, micro_batches=count, overlap=work.gpu)
    setting = setting_of(work, parallel, micro_batch)
    logits, moment = loss_bytes(work, setting, parallel) if has_head(parallel, rank) else (0, 0)
    activations, logits = held_by(work, setting, parallel, stages, logits, moments(parallel, rank, count))
    if parallel.pipeline > 1 and count > 1:
        activations += lingering(work, setting, parallel, stages, count)
    again = max((again_by(work, setting, stage) for stage in stages), default=0)
    buffers = (
        state.buffers
        + received_into(work, setting, parallel, stages, count)
        + batch_bytes(work, parallel, count, micro_batch)
    )
    found = Memory(
        state.weights,
        state.gradients,
        state.optimizer,
        state.gathered,
        activations,
        logits,
        max(moment, again),
        buffers,
        host=state.host,
    )
    return _with_allowances(found) if work.gpu else found


def _with_allowances(found: Memory) -> Memory:
    values = {one.name: getattr(found, one.name) for one in fields(found)}
    return Memory(**values | {"framework": CONTEXT_BYTES, "fragments": int(FRAGMENTS * found.total)})
