"""Structural conversions: each takes a model with its tensors and gives another model with its own.

A model's tensors are read by logical name, each made when it is asked for, so a conversion holds one tensor at a time
and conversions compose as functions do. What each keeps, which the tests hold it to:

    take_layers         the layers in the list, unchanged; a list of all layers in order is the same model
    … with identity     the logits: a repeat passes its input on (block expansion, LLaMA Pro, arXiv 2401.02415)
    resize_vocabulary   the logits of every old token, bitwise
    average             the mean, taken in float64 and rounded once; of equal tensors it is the same bits
    upcycle             the logits, to rounding: each token's experts are whole copies of the dense layer
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.config import ModelConfig, ModelError
from models.decoder import Decoder, named_parameters
from models.huggingface import logical_shapes
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from models.parameters import declaration, initialise
from models.random import CHUNK, fill_normal, stream_key

Read = Callable[[str], Tensor]

VOCABULARY_TENSORS = ("embedding.token.weight", "head.projection.weight")
FILLS = ("mean", "init", "zero")

MEMORY = ("bias", "frequency")
"""What routers remember beside their weights, float32 [E] each: `models.moe.routing.RouterState`."""

INTO_THE_RESIDUAL = (
    "attention.output.weight",
    "attention.output.bias",
    "cross.output.weight",
    "cross.output.bias",
    "feed_forward.down.weight",
    "feed_forward.down.bias",
    "feed_forward.experts.down.weight",
    "feed_forward.experts.down.bias",
    "feed_forward.shared.down.weight",
    "feed_forward.shared.down.bias",
)


@dataclass(frozen=True)
class Weights:
    """A model and its tensors. read: logical name -> whole tensor float32, which the caller leaves as it is.

    memory: which of MEMORY there is of every router. Moments of an optimizer are of this form too: one tensor for each
    parameter, of its shape, and no memory.
    """

    model: ModelConfig
    read: Read
    memory: tuple[str, ...] = ()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order of the model; what routers remember comes last."""
        model = self.model
        routers = [f"layers.{layer}.feed_forward.router" for layer in range(model.layers) if model.has_experts(layer)]
        remembered = {f"{router}.{kind}": (model.moe.experts,) for router in routers for kind in self.memory}
        return logical_shapes(model) | remembered


def take_layers(source: Weights, order: Sequence[int], *, identity: bool = False) -> Weights:
    """The model whose layer i is layer `order[i]` of the source: its first layers, or depth up-scaling (SOLAR, 2312.15166).

    identity: where a layer occurs again, its output projections are zero, so that it passes its input on until it is
    trained, and the model computes what the list without repeats does. Needs pre-norm. ModelError for layers there are not.
    """
    depth = source.model.layers
    if source.model.parametrization.kind == "completep" and len(order) != depth:
        raise ModelError(
            f"model.parametrization.kind=completep: divides what layers add by their number, {depth}, and with {len(order)} "
            "the kept ones would compute something else; keep their number, or begin from a model of another kind"
        )
    wrong = [index for index in order if not 0 <= index < depth]
    if wrong or not order:
        raise ModelError(f"layer {wrong[0] if wrong else 'list'}: there are layers 0 to {depth - 1}; name some of them")
    if identity and source.model.norm_position != "pre":
        raise ModelError(
            f"model.norm_position={source.model.norm_position}: a layer that adds nothing still normalises, so no repeat "
            "can pass its input on; leave --identity"
        )
    if identity and len(set(order)) == len(order):
        raise ModelError("--identity: has no effect where no layer occurs twice; repeat one, or leave it")

    model = replace(source.model, layers=len(order))
    for place, index in enumerate(order):
        if model.has_experts(place) != source.model.has_experts(index):
            kind = "experts" if source.model.has_experts(index) else "no experts"
            raise ModelError(
                f"layer {place} of the new model would be layer {index}, which has {kind}, against "
                f"model.moe.first_dense={model.moe.first_dense} and every={model.moe.every}; choose a list that keeps to them"
            )

    def read(name: str) -> Tensor:
        if not name.startswith("layers."):
            return source.read(name)
        _, index, path = name.split(".", 2)
        tensor = source.read(f"layers.{order[int(index)]}.{path}")
        repeated = order[int(index)] in order[: int(index)]
        return torch.zeros_like(tensor) if identity and repeated and path in INTO_THE_RESIDUAL else tensor

    return Weights(model, read, source.memory)


def resize_vocabulary(source: Weights, size: int, multiple: int, fill: str, seed: int = 0) -> Weights:
    """The model with `size` tokens, padded to a multiple of `multiple`. Old tokens keep their rows; so does padding.

    fill: what new rows hold. mean: the mean of the old tokens' rows; a new logit is then the mean of the old ones, so the
    loss of old tokens rises by log(1 + new / old) at most (Hewitt 2021). init: the initial weights that a model of this
    size has there with this seed. zero: for moments. A token that was padding counts as new. ModelError for fewer tokens.
    """
    old = source.model
    if size < old.vocab_size:
        raise ModelError(
            f"--vocab={size}: the model has {old.vocab_size} tokens, and none can be dropped; name at least as many"
        )
    new = replace(old, vocab_size=size, vocab_multiple=multiple)

    def read(name: str) -> Tensor:
        tensor = source.read(name)
        if name not in VOCABULARY_TENSORS:
            return tensor
        wide = torch.empty(new.padded_vocab, *tensor.shape[1:], dtype=tensor.dtype)
        wide[: old.vocab_size] = tensor[: old.vocab_size]
        _fill_rows(wide, old.vocab_size, name, new, fill, seed)
        if size < old.padded_vocab:  # what pads both
            kept = slice(size, min(old.padded_vocab, new.padded_vocab))
            wide[kept] = tensor[kept]
        return wide

    return Weights(new, read, source.memory)


def _fill_rows(tensor: Tensor, start: int, name: str, model: ModelConfig, fill: str, seed: int) -> None:
    """Write the rows of an embedding or head from `start` on; those before are there."""
    if fill == "init":
        with torch.device("meta"):
            parameters = dict(named_parameters(iter(Decoder(model, PlainLayers()).blocks)))
        initialise(tensor[start:], name, seed, declaration(parameters[name]), (start, *[0] * (tensor.dim() - 1)))
    else:
        tensor[start:] = tensor[:start].mean(0, dtype=torch.float64).to(tensor.dtype) if fill == "mean" else 0


def average(sources: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """The mean of models of one shape, each counted `share` times (stochastic weight averaging, arXiv 1803.05407).

    ModelError where the models differ, or the shares sum to nothing.
    """
    first = sources[0].model
    for other in sources[1:]:
        if replace(other.model, name=first.name) != first:
            raise ModelError(f"--average: {_difference(first, other.model)}; only models of one shape have a mean")
    if len(shares) != len(sources) or sum(shares) <= 0:
        raise ModelError(
            f"--average-weights={','.join(map(str, shares))}: must be {len(sources)} numbers, the source's first, of a sum "
            "above 0"
        )

    def read(name: str) -> Tensor:
        total = sources[0].read(name).double().mul_(shares[0])
        for source, share in zip(sources[1:], shares[1:], strict=True):
            parts = source.read(name).flatten().split(CHUNK)  # a sum of two dtypes makes a copy of its operand
            for there, part in zip(total.view(-1).split(CHUNK), parts, strict=True):
                there.add_(part, alpha=share)
        return total.div_(sum(shares)).float()

    return Weights(first, read, sources[0].memory)


def upcycle(source: Weights, experts: int, top_k: int, parts: int = 1, *, seed: int = 0) -> Weights:
    """A dense model with experts in place of each feed-forward layer, which computes the same (sparse upcycling, 2212.05055).

    Each layer is copied `experts / parts` times, and each copy divided by its features into `parts` experts. All parts of a
    copy have one router row (virtual groups, arXiv 2410.07524), so they are chosen together while nothing has been trained;
    a token's weights sum to 1 over experts of which `parts` make a whole, hence model.moe.scale = parts.
    parts=1: copies. parts=experts=top_k: one copy divided, no parameters but the router's added.
    ModelError where features, experts or choices do not divide, or the source has experts already.
    """
    dense, width = source.model, source.model.ffn_width
    if dense.moe.experts:
        raise ModelError(
            f"--experts={experts}: the model has {dense.moe.experts} experts already; begin from a dense one"
        )
    for option, value, divisor in (
        ("feed-forward width", width, parts),
        ("--experts", experts, parts),
        ("--top-k", top_k, parts),
    ):
        if value % divisor or not value:
            raise ModelError(
                f"{option}={value}: must be a multiple of --granularity={divisor}, so that whole layers are chosen"
            )
    narrow = width // parts
    product = "loop" if narrow % 8 or dense.hidden_size % 8 else "grouped"
    moe = MoEConfig(
        experts=experts, top_k=top_k, expert_size=narrow, normalise=True, scale=float(parts), product=product
    )
    model = replace(dense, ffn_size=width, moe=moe)

    def read(name: str) -> Tensor:
        head, inside, path = name.partition(".feed_forward.")
        if not inside:
            return source.read(name)
        if path == "router.weight":
            rows = torch.empty(experts // parts, model.hidden_size)
            key = stream_key(seed, "weights", name)
            fill_normal(rows, key, (experts, model.hidden_size), (0, 0), model.output_std)
            return rows.repeat_interleave(parts, 0)
        if path in ("router.bias", "router.frequency"):
            return torch.full((experts,), 0.0 if path.endswith("bias") else 1.0 / experts)
        tensor = source.read(f"{head}.feed_forward.{path.removeprefix('experts.')}")
        return experts_of(path.removeprefix("experts."), tensor, parts, gated=model.gated, copies=experts // parts)

    return Weights(model, read, MEMORY)


def experts_of(path: str, dense: Tensor, parts: int, *, gated: bool, copies: int) -> Tensor:
    """A tensor of a dense feed-forward layer as that of all experts, one expert's rows after another's.

    E = copies x parts, f = F / parts. path: up.weight [(2)F, H] -> [E (2)f, H], gate rows before up rows in each expert.
    down.weight [H, F] -> [E f, H], transposed. up.bias [(2)F] -> [E (2)f]. down.bias [H] -> [E H], divided by the parts that
    add it up.
    """
    if path == "down.bias":
        whole = (dense / parts).repeat(parts)
    elif path == "down.weight":
        whole = dense.t()
    else:
        fused = dense.unflatten(0, (2 if gated else 1, parts, -1))
        whole = fused.transpose(0, 1).reshape(dense.shape)
    return torch.cat([whole] * copies)


def _difference(one: ModelConfig, other: ModelConfig) -> str:
    fields = [field for field in vars(one) if field != "name" and getattr(one, field) != getattr(other, field)]
    return ", ".join(
        f"model.{field} is {getattr(one, field)} here and {getattr(other, field)} there" for field in fields
    )
