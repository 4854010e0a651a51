"""What a rank sends in a step, axis by axis, and how long the data axis takes."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.plan.chips import BESIDE
from launcher.plan.layers import EMBEDDING, LAST, Cut
from launcher.plan.machine import Machine
from launcher.plan.networks import Group
from launcher.plan.products import DECODER, EXPERTS, MIXTURE, Share, layer_of
from models.config import ModelConfig
from parallel.config import ParallelConfig


@dataclass(frozen=True)
class Traffic:
    """One axis. bytes: sent by a rank in a step; link: node or network; seconds: of all its transfers, hidden or not."""

    axis: str
    what: str
    bytes: float
    link: str
    seconds: float


@dataclass(frozen=True)
class Held:
    """Weights on a rank before ZeRO cuts them: those of routed experts, and the others."""

    dense: float
    experts: float

    @property
    def all(self) -> float:
        """Both."""
        return self.dense + self.experts


def held_of(counts: dict[str, int], model: ModelConfig, cut: Cut) -> Held:
    """Weights of so many blocks of each kind: those of products and tables. Vectors, less than a thousandth, are left out."""
    dense = experts = 0.0
    share = Share(1.0, cut.length, cut.tensor, cut.context, cut.expert)
    for kind, count in counts.items():
        if kind in (EMBEDDING, LAST):
            dense += count * model.padded_vocab // cut.tensor * model.hidden_size
            continue
        for product in layer_of(model, kind, share).products:
            weights = product.inner * product.columns * product.count * count
            routed = kind == MIXTURE and product.part == EXPERTS and product.count > 1
            experts, dense = (experts + weights, dense) if routed else (experts, dense + weights)
    return Held(dense, experts)


@dataclass(frozen=True)
class Sharing:
    """What the data axis does in a step. gather, reduce: seconds of one; gathers, reduces: how many; bytes: sent in all."""

    gather: float
    gathers: int
    reduce: float
    reduces: int
    bytes: float
    group: Group
    updated: float
    """Parameters that this rank updates."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.gather * self.gathers + self.reduce * self.reduces


def sharing_of(held: Held, parallel: ParallelConfig, micro_batches: int, machine: Machine) -> Sharing:
    """How a layout's data and context axes share parameters, by the stage of ZeRO; experts over the ranks that hold the
    same."""
    replicas, zero, fabric = parallel.replicas, parallel.zero_stage, machine.fabric
    gather = reduce = sent = updated = 0.0
    for weights, size, stride in (
        (held.dense, replicas, parallel.tensor),
        (held.experts, replicas // parallel.expert, parallel.tensor * parallel.expert),
    ):
        shards = max(1, size // parallel.data_replicas)
        inner = fabric.group(shards, stride)
        outer = fabric.group(size // shards, stride * shards)
        gradients, copies = weights * machine.software.gradient_bytes, weights * machine.size
        if zero == 0:
            reduce += fabric.all_reduce(gradients, fabric.group(size, stride), crowded=True)
            sent += 2 * gradients * (size - 1) / size
            updated += weights
            continue
        reduce += fabric.reduce_scatter(gradients, inner, crowded=True)
        reduce += fabric.all_reduce(gradients / shards, outer, crowded=True)
        gather += fabric.reduce_scatter(copies, inner, crowded=True)
        often = (micro_batches if zero >= 2 else 1, 2 * micro_batches if zero == 3 else 1)
        sent += (gradients * often[0] + copies * often[1]) * (shards - 1) / shards
        updated += weights / shards
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * micro_batches}[zero]
    reduces = micro_batches if zero >= 2 else 1
    return Sharing(gather, gathers, reduce, reduces, sent, fabric.group(replicas, parallel.tensor), updated)


def exposed(sharing: Sharing, forward: float, backward: float, parallel: ParallelConfig, machine: Machine) -> float:
    """Seconds that the data axis adds to a step.

    Gradients travel beside the backward of the micro-batch that makes them, the last one's last block after it;
    parameters beside forward and backward (ZeRO 3, FSDP2) or, under DeepSpeed's stages 1 and 2, after the update.
    forward, backward: seconds of one micro-batch.
    """
    alone = _alone(sharing, forward, backward, parallel, machine)
    return alone + (sharing.seconds - alone) * BESIDE


def _alone(sharing: Sharing, forward: float, backward: float, parallel: ParallelConfig, machine: Machine) -> float:
    software = machine.software
    if not software.data_hidden or (parallel.pipeline > 1 and not software.data_hidden_in_pipelines):
        return sharing.seconds
    if parallel.zero_stage == 3:
        one = 2 * sharing.gather + sharing.reduce
        return sharing.reduces * max(0.0, one - forward - backward)
    left = sharing.reduces * max(0.0, sharing.reduce - backward)
    beside = forward if software.gathers_hidden else 0.0
    return left + sharing.gathers * max(0.0, sharing.gather - beside)


def message_of(model: ModelConfig, cut: Cut, machine: Machine) -> float:
    """Bytes of activations that a rank sends to the next stage."""
    cuts = cut.tensor if cut.sequence_parallel or machine.software.sends_cut else 1
    return cut.share.tokens * model.hidden_size * machine.size / cuts


def send_seconds(model: ModelConfig, cut: Cut, parallel: ParallelConfig, machine: Machine) -> float:
    """Seconds of one such send, and of its gathering on arrival where it was cut for the way only."""
    seconds = machine.fabric.send(message_of(model, cut, machine), machine.stages_cross(parallel))
    if machine.software.sends_cut and not cut.sequence_parallel:
        whole = cut.share.tokens * model.hidden_size * machine.size
        seconds += machine.fabric.reduce_scatter(whole, machine.tensor_group(cut.tensor))
    return seconds


def traffic_of(
    counts: dict[str, int], model: ModelConfig, cut: Cut, parallel: ParallelConfig, micro_batches: int, machine: Machine
) -> list[Traffic]:
    """Tensor, context and expert axes of a rank with so many blocks; forward, backward, and again where layers are
    recomputed."""
    rows, again = cut.share.tokens, 3 if cut.recompute == "block" else 2
    layers = sum(count for kind, count in counts.items() if kind not in (EMBEDDING, LAST))
    found = []
    if cut.tensor > 1:
        group = machine.tensor_group(cut.tensor)
        branches = 3 * counts.get(DECODER, 0) + 2 * (layers - counts.get(DECODER, 0))
        size = 2 * rows * model.hidden_size * machine.size * (cut.tensor - 1) / cut.tensor
        what = "gathers and scatters" if cut.sequence_parallel else "all-reduces"
        found.append(_line("tensor", what, size * branches * again * micro_batches, group, machine))
    if cut.context > 1:
        group = machine.context_group(cut.tensor, cut.context)
        pairs = 2 * rows * model.key_value_heads * model.head_width * machine.size / cut.tensor
        if cut.ring:
            size, what = pairs * (cut.context - 1) * (again + 1), "keys and values round the ring"
        else:
            heads = 2 * (model.heads + model.key_value_heads) * model.head_width * machine.size / cut.tensor
            size, what = rows * heads * again * (cut.context - 1) / cut.context, "all-to-all of heads"
        found.append(_line("context", what, size * layers * micro_batches, group, machine))
    if cut.expert > 1:
        group = machine.expert_group(cut.tensor, cut.expert)
        routed = rows * model.moe.top_k * model.hidden_size * machine.size * (cut.expert - 1) / cut.expert
        size = 2 * routed * again * counts.get(MIXTURE, 0) * micro_batches
        found.append(_line("expert", "all-to-all of tokens", size, group, machine))
    return found


def _line(axis: str, what: str, size: float, group: Group, machine: Machine) -> Traffic:
    return Traffic(axis, what, size, group.link, size / machine.fabric.rate(group))
