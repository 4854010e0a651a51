"""Seconds that one rank spends on one block of a model for one micro-batch, forward and backward, by part."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from launcher.plan.chips import BESIDE
from launcher.plan.machine import Machine
from launcher.plan.products import DECODER, ENCODER, EXPERTS, MIXTURE, Layer, Product, Share, head_of, layer_of
from models.config import ModelConfig
from parallel.config import ParallelConfig

Parts = dict[str, float]
"""Seconds by part (`launcher.plan.step.PARTS`)."""
EMBEDDING, LAST = "embedding", "head"
IMBALANCE = 1.15
"""Rows of the expert rank with the most, beside the mean: judgement, for routers that are balanced by a loss or a bias."""


class Cost(NamedTuple):
    """Seconds of a block or of several."""

    forward: Parts
    backward: Parts

    @property
    def total(self) -> float:
        """Both."""
        return sum(self.forward.values()) + sum(self.backward.values())


class Cut(NamedTuple):
    """Of a layout and its micro-batch, what the work of a block depends on."""

    tensor: int
    context: int
    ring: bool
    expert: int
    sequence_parallel: bool
    recompute: str
    tokens: int
    length: int
    fused_loss: bool

    @property
    def share(self) -> Share:
        """What a rank gets."""
        return Share(self.tokens / self.context, self.length, self.tensor, self.context, self.expert)


def cut_of(parallel: ParallelConfig, micro_batch: int, length: int, fused_loss: bool) -> Cut:
    """The cut of a layout. length: tokens of a sequence."""
    return Cut(
        tensor=parallel.tensor,
        context=parallel.context,
        ring=parallel.context_method == "ring",
        expert=parallel.expert,
        sequence_parallel=parallel.sequence_parallel,
        recompute=parallel.recompute,
        tokens=micro_batch * length,
        length=length,
        fused_loss=fused_loss,
    )


def total_of(counts: dict[str, int], model: ModelConfig, cut: Cut, machine: Machine) -> Cost:
    """The cost of so many blocks of each kind."""
    forward: Parts = defaultdict(float)
    backward: Parts = defaultdict(float)
    for kind, count in counts.items():
        cost = block_cost(kind, model, cut, machine)
        for whole, part in ((forward, cost.forward), (backward, cost.backward)):
            for name, seconds in part.items():
                whole[name] += count * seconds
    return Cost(dict(forward), dict(backward))


@lru_cache(maxsize=65536)
def block_cost(kind: str, model: ModelConfig, cut: Cut, machine: Machine) -> Cost:
    """One block: the embedding, a layer of a kind of `launcher.plan.products`, or the head with final norm and loss."""
    if kind == EMBEDDING:
        return _embedding(model, cut, machine)
    if kind == LAST:
        return _head(model, cut, machine)
    layer = layer_of(model, kind, cut.share)
    products = [_of_the_fullest(product, cut) for product in layer.products]
    forward = {
        "products": sum(_product(machine, product) for product in products),
        "attention": sum(
            machine.rates.core(core, False, machine.software.attention == "fused") for core in layer.cores
        ),
        "passes": _passes(model, kind, layer, cut, machine, 0),
        **_travel(model, kind, layer, cut, machine, 0),
    }
    backward = {
        "products": sum(_product(machine, half) for product in products for half in product.backward),
        "attention": sum(machine.rates.core(core, True, machine.software.attention == "fused") for core in layer.cores),
        "passes": _passes(model, kind, layer, cut, machine, 1),
        **_travel(model, kind, layer, cut, machine, 1),
    }
    if cut.recompute == "block":
        backward["recompute"] = forward["products"] + forward["attention"] + forward["passes"]
        for axis in ("tensor", "context", "expert"):
            backward[axis] += forward[axis]
    elif cut.recompute == "selective":
        scores = sum(core.scores for core in layer.cores) * machine.software.passes.scores[0]
        backward["recompute"] = forward["attention"] + scores / machine.rates.memory
    return Cost(forward, backward)


def _of_the_fullest(product: Product, cut: Cut) -> Product:
    """A product as the rank has it whose experts are chosen most, and whom the others wait for."""
    if cut.expert == 1 or product.part != EXPERTS or product.count == 1:
        return product
    return replace(product, rows=product.rows * IMBALANCE)


def _product(machine: Machine, product: Product) -> float:
    """A linear layer's product, its operands quantised where that is asked for; narrow ones (routers, gates) never are."""
    if product.columns < 1024 and product.inner > product.columns * 4:
        return machine.plain.product(product)
    elements = product.count * product.inner * (product.rows + product.columns)
    return machine.rates.product(product) + machine.rates.quantise(elements)


def _passes(model: ModelConfig, kind: str, layer: Layer, cut: Cut, machine: Machine, way: int) -> float:
    """Seconds of a layer's element-wise passes. way: 0 forward, 1 backward."""
    passes, rows = machine.software.passes, layer.rows
    branches = 3 if kind == DECODER else 2
    whole = branches * rows * model.hidden_size / (cut.tensor if cut.sequence_parallel else 1)
    heads = (model.heads + 2 * model.key_value_heads) * model.head_width
    activation = (passes.gated if model.gated else passes.activation)[way]
    features = rows * model.ffn_width
    if kind == MIXTURE:
        features = (layer.routed + rows * model.moe.shared_experts) * model.expert_width
    moved = whole * (passes.norm[way] + passes.residual[way])
    moved += (features * activation + rows * heads * passes.rotary[way]) / cut.tensor
    moved += sum(core.scores for core in layer.cores) * passes.scores[way]
    moved += layer.routed * model.hidden_size * passes.routed[way]
    if model.bias:
        moved += sum(product.rows * product.columns * product.count for product in layer.products) * passes.bias[way]
    return moved * machine.size / 2 / machine.rates.memory


def _travel(model: ModelConfig, kind: str, layer: Layer, cut: Cut, machine: Machine, way: int) -> Parts:
    """Seconds of a layer's transfers that nothing hides."""
    software, fabric = machine.software, machine.fabric
    message = layer.rows * model.hidden_size * machine.size
    branches = 3 if kind == DECODER else 2
    tensor = branches * _regions(machine, cut, message) * left_of(software.tensor_hidden * way)
    found = {"tensor": tensor, "context": _context(model, layer, cut, machine, way), "expert": 0.0}
    if kind == MIXTURE and cut.expert > 1:
        size, group = layer.routed * model.hidden_size * machine.size, machine.expert_group(cut.tensor, cut.expert)
        once = min(1.0, software.nodes_of_token / model.moe.top_k) if software.nodes_of_token else 1.0
        found["expert"] = 2 * left_of(software.expert_hidden) * fabric.all_to_all(size, group, once)  # there and back
    return found


def left_of(hidden: float) -> float:
    """What is left of a second of transfers of which the share `hidden` runs beside computing, and takes a part of the chip."""
    return 1 - hidden + hidden * BESIDE


def _regions(machine: Machine, cut: Cut, message: float) -> float:
    """Into a tensor-parallel region and out of it: an all-reduce, or with sequence parallelism a gather and a scatter."""
    group = machine.tensor_group(cut.tensor)
    if cut.sequence_parallel:
        return 2 * machine.fabric.reduce_scatter(message, group)
    return machine.fabric.all_reduce(message, group)


def _context(model: ModelConfig, layer: Layer, cut: Cut, machine: Machine, way: int) -> float:
    """A ring's keys and values go round beside the cores, backward with their gradients; Ulysses shares out heads and back."""
    if cut.context == 1:
        return 0.0
    group = machine.context_group(cut.tensor, cut.context)
    width = model.head_width * machine.size / cut.tensor * layer.rows
    if not cut.ring:
        heads = 2 * model.heads + 2 * model.key_value_heads
        return 2 * machine.fabric.all_to_all(heads * width / 2, group)
    hop = machine.fabric.send(2 * model.key_value_heads * width * (1 + way), group.crosses)
    beside = sum(machine.rates.core(core, bool(way), True) for core in layer.cores)
    return max(0.0, (cut.context - 1) * hop - beside * (cut.context - 1) / cut.context)


def _embedding(model: ModelConfig, cut: Cut, machine: Machine) -> Cost:
    rows = cut.share.tokens
    features = rows * model.hidden_size / (cut.tensor if cut.sequence_parallel else 1) * machine.size / 2
    regions = _regions(machine, cut, rows * model.hidden_size * machine.size)
    forward, backward = (features * way / machine.rates.memory for way in machine.software.passes.embedding)
    half = regions / 2 if cut.sequence_parallel else regions
    return Cost(
        {"passes": forward, "tensor": half}, {"passes": backward, "tensor": half if cut.sequence_parallel else 0.0}
    )


def _head(model: ModelConfig, cut: Cut, machine: Machine) -> Cost:
    passes, product = machine.software.passes, head_of(model, cut.share)
    rows, memory = product.rows, machine.rates.memory
    features = rows * model.hidden_size / (cut.tensor if cut.sequence_parallel else 1) * machine.size / 2
    logits = passes.fused_logit if cut.fused_loss else passes.logit
    seconds = [(features * passes.norm[way] + rows * product.columns * logits[way]) / memory for way in (0, 1)]
    regions = _regions(machine, cut, rows * model.hidden_size * machine.size)
    gather = regions / 2 if cut.sequence_parallel else 0.0
    plain = machine.plain.product
    halves = sum(plain(half) for half in product.backward)
    return Cost(
        {"products": plain(product), "passes": seconds[0], "tensor": gather},
        {"products": halves, "passes": seconds[1], "tensor": regions - gather},
    )


def kinds_of_blocks(model: ModelConfig, kinds: list[str]) -> list[str]:
    """The kind of each block of the decoder (`models.blocks`), empty for those that cost next to nothing. kinds: of layers."""
    pre = [""] if model.norm_position == "pre" else []
    encoder = [kind for kind in kinds if kind == ENCODER]
    rest = kinds[len(encoder) :]
    return [EMBEDDING, "", *encoder, *(pre if encoder else []), *rest, *pre, LAST]
