"""Bytes of a rank's state, exactly as the engines of this repository lay it out: weights, gradients, the optimizer's.

Every engine pads differently. torch's FSDP2 cuts each parameter into equal runs of rows; DeepSpeed lays the parameters of a
group of the optimizer side by side and cuts that (ZeRO 1 and 2), or cuts each parameter flat (ZeRO 3). Rank 0 of the replicas
has the fullest share under all of them, and is the one that is counted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from launcher.config import OptimizerConfig
from launcher.plan.flight import begun
from launcher.plan.parameters import LAYERS, Stage, parameters_of
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.schedule import SCHEDULES, owner

FLOAT = 4
"""Bytes of masters, moments and gradients, and of the count of steps that torch's optimizers keep with each tensor they
step."""
MOMENTS = {"adamw": 2, "sgd": 1}
"""Tensors like the master that an optimizer keeps (SGD with momentum)."""
BUCKET = (1 << 16, 200_000_000)
"""Least and most elements of a communication bucket under DeepSpeed (`parallel.engines.deepspeed._bucket`)."""
PERSISTENT = 100_000
"""ZeRO 3 keeps parameters of fewer elements whole (DeepSpeed 0.19.8, `stage3_param_persistence_threshold`)."""
LIVE = 1_000_000_000
"""Elements of gathered parameters that it holds at most (`stage3_max_live_parameters`)."""
SUB_GROUP = 1_000_000_000
"""Elements of a rank's shares that ZeRO 3 steps at once (`sub_group_size`)."""


@dataclass(frozen=True)
class State:
    """Bytes from step to step, and while one runs.

    weights: parameters as the engine keeps them. gradients: at their most in a step. optimizer: moments, counts of steps and
    master weights that are apart from the weights. gathered: whole copies of what is sharded, at their most. buffers: of
    communication. host: of all these what lies in host memory, and is counted nowhere else."""

    weights: int
    gradients: int
    optimizer: int
    gathered: int = 0
    buffers: int = 0
    host: int = 0


@dataclass(frozen=True)
class Totals:
    """Sums over a rank's parameters, all that its state follows from, in elements but for `tensors`, how many parameters
    there are.

    held: before anything is cut. rows: of a share, cut by rows and padded (FSDP2). Whole, with that padding: layers, the
    largest two of each kind; others, all but these; ends, blocks that are no layers; widest, the largest block. groups:
    (held, whether of experts over the expert axis) of each group of the optimizer. flat: of a share of each parameter cut
    flat (ZeRO 3), by group. small: of parameters that it keeps whole."""

    held: int
    tensors: int
    rows: int
    layers: tuple[int, ...]
    others: int
    ends: int
    widest: int
    groups: tuple[tuple[int, bool], ...]
    flat: tuple[int, ...]
    small: int


@lru_cache(maxsize=1 << 16)
def totals_of(
    model: ModelConfig, stages: tuple[Stage, ...], tensor: int, expert: int, shards: int, expert_shards: int
) -> Totals:
    """Of these stages. shards, expert_shards: ranks that cut a parameter, and one of experts."""
    held = tensors = rows = others = ends = widest = small = 0
    layers: list[int] = []
    groups: dict[tuple[bool, bool], int] = {}
    flat: dict[bool, int] = {}
    for stage in stages:
        for kind, n in stage.counts.items():
            whole = 0
            for one in parameters_of(model, kind, tensor, expert):
                over, count = expert_shards if one.expert else shards, one.count
                share = -(-one.shape[0] // over) * (count // one.shape[0])
                held, tensors, rows, whole = held + n * count, tensors + n, rows + n * share, whole + share * over
                key = (one.expert and expert > 1, one.decays)
                groups[key] = groups.get(key, 0) + n * count
                flat[one.decays] = flat.get(one.decays, 0) + n * -(-count // over)
                small += n * count if count < PERSISTENT else 0
            widest = max(widest, whole)
            if kind in LAYERS:
                layers += [whole] * min(n, 2)
                others += whole * max(0, n - 2)
            else:
                others, ends = others + n * whole, ends + n * whole
    found = tuple((count, apart) for (apart, _), count in groups.items())
    return Totals(
        held,
        tensors,
        rows,
        tuple(sorted(layers, reverse=True)),
        others,
        ends,
        widest,
        found,
        tuple(flat.values()),
        small,
    )


def state_of(
    model: ModelConfig,
    stages: tuple[Stage, ...],
    parallel: ParallelConfig,
    size: int,
    optimizer: OptimizerConfig,
    *,
    micro_batches: int,
    overlap: bool,
) -> State:
    """State of a rank that holds these stages. parallel: resolved, its engine too; size: bytes of a number of the model's type;
    micro_batches: of a step on each data rank; overlap: whether gradients are reduced beside backward."""
    sharded = parallel.engine == "torch" and parallel.model_parallel * parallel.data > 1
    copies = (parallel.data_replicas if parallel.zero_stage else parallel.replicas) if sharded else 1
    shards = parallel.replicas // copies
    expert_shards = max(1, shards // parallel.expert)
    total = totals_of(model, stages, parallel.tensor, parallel.expert, shards, expert_shards)
    if parallel.engine == "deepspeed":
        return _deepspeed(total, model, stages, parallel, size, optimizer, micro_batches, overlap)
    if not sharded:
        return _one_process(total, size, optimizer)
    passing = 0
    if parallel.pipeline > 1:
        each = [totals_of(model, (one,), parallel.tensor, parallel.expert, shards, expert_shards) for one in stages]
        summed = _summed_by_stages(each, parallel, stages[0].index, micro_batches)
        if SCHEDULES[parallel.schedule].splits_backward and size < FLOAT:
            passing = max(one.held for one in each)
    else:  # below ZeRO 2 gradients are summed whole over micro-batches and reduced in the last one
        summed = total.held if micro_batches > 1 and parallel.zero_stage < 2 else 0
    return _sharded(total, parallel, size, optimizer, summed, passing)


def _moments(elements: int, tensors: int, optimizer: OptimizerConfig) -> int:
    """Adam's two and its count of steps for each tensor, or SGD's momentum."""
    if optimizer.name == "adamw":
        return FLOAT * (2 * elements + tensors)
    return FLOAT * elements if optimizer.beta1 else 0


def _one_process(total: Totals, size: int, optimizer: OptimizerConfig) -> State:
    """`parallel.engines.torch`: the model in its type, masters in float32 beside it, gradients summed in float32."""
    held = total.held
    master = FLOAT * held if size < FLOAT and optimizer.master == "float32" else 0
    return State(size * held, FLOAT * held, _moments(held, total.tensors, optimizer) + master)


def _summed_by_stages(each: list[Totals], parallel: ParallelConfig, first: int, micro_batches: int) -> int:
    """Elements of gradients at their most in a pipeline: a stage's whole ones from its first backward to its last, then its
    shares. each: of a rank's stages, of which `first` is the index of the first."""
    shares = [0 if parallel.offload_optimizer else one.rows for one in each]
    held = [(0, one.held, share) for one, share in zip(each, shares, strict=True)]
    moments = begun(parallel, owner(parallel, first), micro_batches)
    return max(sum(of[state] for of, state in zip(held, moment, strict=True)) for moment in moments)


def _sharded(
    total: Totals, parallel: ParallelConfig, size: int, optimizer: OptimizerConfig, summed: int, passing: int
) -> State:
    """`parallel.engines.fsdp`: shards in float32 are masters and weights in one; units are gathered in the model's type.
    Elements of whole gradients, summed: before they are reduced, passing: of a micro-batch in the model's type, which a stage
    whose backward is split adds to the sums when it has them all."""
    cut, whole = total.rows, FLOAT * summed
    gathered = total.others + sum(total.layers)
    if (
        parallel.zero_stage == 3 and parallel.pipeline == 1
    ):  # the root's to the end, and two layers: one is fetched ahead
        gathered = total.ends + sum(total.layers[:2])
    unit = FLOAT * total.widest + size * passing  # a unit's gradients on their way to be reduced, in float32
    moments = _moments(cut, total.tensors, optimizer)
    if not parallel.offload_optimizer:
        return State(FLOAT * cut, max(whole, FLOAT * cut), moments, size * gathered, unit)
    return State(0, whole, 0, size * gathered, unit, 2 * FLOAT * cut + moments)


def _deepspeed(
    total: Totals,
    model: ModelConfig,
    stages: tuple[Stage, ...],
    parallel: ParallelConfig,
    size: int,
    optimizer: OptimizerConfig,
    micro_batches: int,
    overlap: bool,
) -> State:
    """`parallel.engines.deepspeed`, whose wrapped optimizer depends on stage, type and offload."""
    held, zero = total.held, parallel.zero_stage
    bucket = max(BUCKET[0], min(BUCKET[1], held))
    if zero == 0:  # float32 alone: plain torch, and gradients that are laid side by side to be summed
        moments = _moments(held, total.tensors, optimizer)
        return State(FLOAT * held, FLOAT * held, moments, buffers=FLOAT * held if parallel.replicas > 1 else 0)
    if zero == 3:
        return _cut_flat(total, parallel, size, optimizer, bucket)
    shares = []
    for count, apart in total.groups:
        over = parallel.replicas // (parallel.expert if apart else 1)
        shares.append((-(-count // (2 * over)) * 2, over))  # a group is aligned to two elements on every rank
    flat, cut = sum(share * over for share, over in shares), sum(share for share, _ in shares)
    kept = _moments(cut, len(shares), optimizer) + FLOAT * cut  # of float32 models, too, the master is apart
    buffers = FLOAT * bucket * (2 if overlap else 1)  # one is filled while the other is reduced (its `overlap_comm`)
    if zero == 1 and size < FLOAT and not parallel.offload_optimizer:  # its BF16_Optimizer
        gradients, buffers = FLOAT * flat + size * held, 0  # float32 sums of all, and memory for those of a micro-batch
    elif size < FLOAT:
        gradients = FLOAT * (held if zero == 1 else cut)
    elif zero == 1:  # reduced after the last micro-batch, when the first full bucket makes room for shares
        beside = _beside(model, stages, parallel)
        gradients = FLOAT * max(held, held - bucket + beside.touched, beside.step)
    else:
        beside = _beside(model, stages, parallel)
        gradients = FLOAT * (beside.again if micro_batches > 1 else beside.step)
    if parallel.offload_optimizer:
        return State(size * flat, FLOAT * held if zero == 1 else 0, 0, 0, buffers, kept + FLOAT * cut)
    return State(size * flat, gradients, kept, 0, buffers)


@dataclass(frozen=True)
class _Part:
    """Of a rank's equal share of parameters that lie side by side: elements of the parameters that it holds any of, elements
    after the last of them, and elements that a copy of the share takes (one tensor that fills it is not copied)."""

    touched: int
    padding: int
    copied: int


def _parts(counts: list[int], ranks: int) -> list[_Part]:
    """The shares of so many ranks, in their order."""
    total, start = sum(counts), 0
    share = -(-total // (2 * ranks)) * 2
    touched, tensors = [0] * ranks, [0] * ranks
    for count in counts:
        for rank in range(start // share, (start + count - 1) // share + 1):
            touched[rank] += count
            tensors[rank] += 1
        start += count
    found = []
    for rank in range(ranks):
        padding = min(share, max(0, (rank + 1) * share - total))
        found.append(_Part(touched[rank], padding, share if tensors[rank] + (padding > 0) > 1 else 0))
    return found


@dataclass(frozen=True)
class _Beside:
    """Elements of gradients on the ranks where they are most, for float32 models under ZeRO 1 and 2. Reduced gradients move
    to memory for whole parameters, all of which a rank's shares hold any. touched: that memory. step: with a copy of one
    group's share, for the optimizer. again: twice, for what a micro-batch adds and what those before have summed up."""

    touched: int
    step: int
    again: int


@lru_cache(maxsize=4096)
def _beside(model: ModelConfig, stages: tuple[Stage, ...], parallel: ParallelConfig) -> _Beside:
    groups: dict[tuple[bool, bool], list[int]] = {}
    for stage in stages:
        blocks = stage.parameters(model, parallel.tensor, parallel.expert)
        for block in [blocks[-1], *blocks[:-1]] if stage.copy else blocks:  # its pipelines put what is tied first
            for one in block:
                groups.setdefault((one.expert and parallel.expert > 1, not one.decays), []).append(one.count)
    # a replica is rank `replica // expert` of those that share its experts (`parallel.mesh`)
    each = [
        (parallel.expert if apart else 1, _parts(counts, parallel.replicas // (parallel.expert if apart else 1)))
        for (apart, _), counts in sorted(groups.items())  # as the optimizer steps them, one after another
    ]
    touched = step = again = 0
    for replica in range(parallel.replicas):
        own = [parts[replica // among] for among, parts in each]
        memory = sum(part.touched for part in own)
        waiting = [sum(part.padding for part in own[place:]) for place in range(len(own))]
        touched, again = max(touched, memory), max(again, 2 * memory + waiting[0])
        step = max(step, *(memory + rest + part.copied for rest, part in zip(waiting, own, strict=True)))
    return _Beside(touched, step, again)


def _cut_flat(total: Totals, parallel: ParallelConfig, size: int, optimizer: OptimizerConfig, bucket: int) -> State:
    """ZeRO 3: each parameter flat, in equal shares; small ones stay whole beside theirs."""
    cut = sum(total.flat)
    once_more = min(max(total.flat), SUB_GROUP)  # the step lays a sub-group's gradients side by side once more
    kept = _moments(cut, len(total.flat), optimizer) + FLOAT * cut
    gathered = size * min(total.held, total.small + LIVE)
    if parallel.offload_optimizer:
        return State(size * cut, 0, 0, gathered, FLOAT * bucket, kept + FLOAT * cut)
    return State(size * cut, FLOAT * (cut + once_more), kept, gathered, FLOAT * bucket)
