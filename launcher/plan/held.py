"""What a rank holds of the micro-batches in flight, stage by stage: activations, what the loss keeps, where pipelines
receive."""

from __future__ import annotations

from functools import lru_cache

from launcher.plan.activations import head_input, kept_by_layer, split_layer, whole_layer
from launcher.plan.flight import Moment
from launcher.plan.parameters import LAYERS, Stage
from launcher.plan.setting import FLOAT, INT, Setting, statistics
from launcher.plan.work import Work
from parallel.config import ParallelConfig
from parallel.schedule import stage_count

FUSED_LOGITS = 256 << 20
"""What the logits of a chunk may take (models/kernels/linear_cross_entropy/chunks.py, which imports torch)."""


@lru_cache(maxsize=4096)
def setting_of(work: Work, parallel: ParallelConfig, micro_batch: int) -> Setting:
    """What the bytes of a layer depend on."""
    return Setting(
        work.model,
        work.products,
        work.size,
        work.kernels,
        micro_batch,
        work.sequence_length,
        parallel.tensor,
        parallel.context,
        parallel.context > 1 and parallel.context_method == "ulysses",
        parallel.expert,
        parallel.sequence_parallel,
        parallel.recompute,
    )


def held_by(
    work: Work,
    setting: Setting,
    parallel: ParallelConfig,
    stages: tuple[Stage, ...],
    logits: int,
    found: tuple[Moment, ...],
) -> tuple[int, int]:
    """(what layers keep, what the loss keeps) in the moment when both together are most. logits: of a micro-batch."""
    stream = setting.own() * work.model.hidden_size * setting.size
    piped, torch = parallel.pipeline > 1, parallel.engine == "torch"
    kept = [_kept(setting, one, piped and one.kinds[-1] != "head", piped and torch and one.index > 0) for one in stages]
    split = [_split(setting, stage) for stage in stages] if any(any(one.halved) for one in found) else [0] * len(kept)
    most = 0, 0
    for one in found:
        layers = sum(n * size for n, size in zip(one.held, kept, strict=True)) + one.sent * stream
        layers += sum(n * size for n, size in zip(one.halved, split, strict=True))
        ends = (one.held[-1] - one.halved[-1]) * logits  # the head is in a rank's last stage
        if one.halved[-1] and logits:  # the gradient of logits is what the head's weight gradient is made of
            layers += one.halved[-1] * setting.full() * (work.model.padded_vocab // parallel.tensor) * setting.size
        most = max(most, (layers, ends), key=sum)
    return most


def _split(setting: Setting, stage: Stage) -> int:
    """Output gradients that wait for a stage's weight gradients."""
    return sum(n * split_layer(own, kind) for own, kind, n in _layers(setting, stage))


def lingering(work: Work, setting: Setting, parallel: ParallelConfig, stages: tuple[Stage, ...], count: int) -> int:
    """What a rank with one stage still holds of the micro-batch before: the gradient of its input, on its way to the stage
    before. DeepSpeed lets go of input and output, too, only when their place is taken."""
    if len(stages) > 1 or parallel.schedule == "gpipe":
        return 0
    stage, last = stages[0], stages[0].kinds[-1] == "head"
    stream = setting.own() * work.model.hidden_size * setting.size
    if parallel.engine == "torch":  # and its output, on its way to the next, once forwards follow backwards
        steady = count > parallel.pipeline - stage.index
        return stream * ((stage.index > 0) + (steady and not last))
    if stage.index == 0:
        return 0
    rows = setting.full(work.sequence_length - work.model.encoder_length)
    return 3 * stream + (
        rows * (work.model.padded_vocab // parallel.tensor) * setting.size if last and not work.loss.fused else 0
    )


@lru_cache(maxsize=1 << 16)
def _layers(setting: Setting, stage: Stage) -> list[tuple[Setting, str, int]]:
    """(setting, kind, how many) of a stage's layers; some at both ends of a stack may not be quantised."""
    model, products = setting.model, setting.products
    if not products.quantised:
        return [(setting, kind, n) for kind, n in stage.counts.items() if kind in LAYERS]
    found: dict[tuple[str, bool], int] = {}
    for place, kind in enumerate(stage.kinds):
        if kind not in LAYERS:
            continue
        index, count = stage.first + place - 2, model.layers
        if kind == "encoder":
            count = model.encoder_layers
        elif model.encoder_layers:
            index -= model.encoder_layers + (model.norm_position == "pre")
        key = kind, products.above(index, count)
        found[key] = found.get(key, 0) + 1
    return [(setting.high() if high else setting, kind, n) for (kind, high), n in found.items()]


@lru_cache(maxsize=1 << 16)
def _kept(setting: Setting, stage: Stage, passes_on: bool, received: bool) -> int:
    """Bytes that a stage keeps of a micro-batch, but for what the loss keeps. passes_on: whether a schedule holds its output;
    received: whether its input lies where it was received."""
    model = setting.model
    found = sum(n * kept_by_layer(own, kind) for own, kind, n in _layers(setting, stage))
    stream = setting.own() * model.hidden_size * setting.size
    for kind in stage.kinds:
        if kind == "embedding" and setting.tensor > 1:
            found += setting.full() * (INT + 1)  # tokens counted from the rank's first, and which of them are others'
        if kind == "positions" and model.dropout:
            found += setting.own() * model.hidden_size  # which elements were dropped
        if kind in ("final_norm", "encoder_norm"):
            rows = setting.own(model.encoder_length) if kind == "encoder_norm" else setting.own()
            found += stream + statistics(setting, rows)  # the norm's input and its statistics
        if kind == "head":
            found += head_input(setting)
    return found + stream * (passes_on - received)


def again_by(work: Work, setting: Setting, stage: Stage) -> int:
    """The layer that takes most to compute again."""
    if setting.recompute != "block":
        return 0
    own = setting.own() * work.model.hidden_size * setting.size
    return max((whole_layer(one, kind) - own for one, kind, _ in _layers(setting, stage)), default=0)


def loss_bytes(work: Work, setting: Setting, parallel: ParallelConfig) -> tuple[int, int]:
    """(what the loss keeps of a micro-batch, what it needs for a moment when backward begins)."""
    model, size = work.model, work.size
    rows = setting.full(work.sequence_length - model.encoder_length)
    share = model.padded_vocab // parallel.tensor
    whole = rows * share
    if work.loss.fused:
        chunk = min(size * whole, FUSED_LOGITS)
        piled = parallel.pipeline > 1 and parallel.schedule == "gpipe"
        made = size * rows * model.hidden_size + FLOAT * share * model.hidden_size
        if work.reweighted or piled:  # gradients are made in backward
            return rows * (INT + FLOAT), chunk + made
        return made + rows * (INT + FLOAT), chunk
    if work.kernels or parallel.tensor > 1:  # logits are kept, and the gradient is written over them
        wide = 0 if work.kernels else FLOAT * whole  # plain torch computes it in float32 first
        return size * whole + rows * (INT + FLOAT), wide
    kept = FLOAT * whole + INT * rows  # logarithms of the softmax
    if parallel.pipeline > 1:
        kept += size * whole  # a schedule holds what the last stage gave
    return kept, 2 * FLOAT * whole


def received_into(work: Work, setting: Setting, parallel: ParallelConfig, stages: tuple[Stage, ...], count: int) -> int:
    """Where a pipeline's activations and their gradients arrive. torch makes room for every micro-batch of a step, for each
    stage and direction; DeepSpeed for one gradient."""
    if parallel.pipeline == 1:
        return 0
    stream = setting.own() * work.model.hidden_size * setting.size
    last = stage_count(parallel) - 1
    if parallel.engine == "deepspeed":
        return stream
    own = {stage.index for stage in stages}  # a V's turn hands on what is counted where it comes from
    forward = sum(stage.index > 0 and stage.index - 1 not in own for stage in stages)
    return count * stream * (forward + sum(stage.index < last and stage.index + 1 not in own for stage in stages))


def batch_bytes(work: Work, parallel: ParallelConfig, count: int, micro_batch: int) -> int:
    """Tokens, targets and weights of a data rank's share of a batch."""
    return count * micro_batch * work.sequence_length // parallel.context * (2 * INT + FLOAT)
