"""The parameters that a rank holds at any layout, by arithmetic alone: names, shapes and who shares them.

What `parallel.paper` builds, without building it: a search asks for ten thousand layouts.
`tests/launcher/test_plan_parameters.py` holds the two together, parameter for parameter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

from models.blocks import block_count
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.schedule import owner, stage_count, stages_of
from parallel.stages import stage_bounds

LAYERS = ("dense", "experts", "encoder", "cross")
"""Kinds of blocks that are layers."""


@dataclass(frozen=True)
class Parameter:
    """A parameter on one rank, before ZeRO cuts it. shape: its local one; cut: whether it is a share of a logical tensor, so
    that every rank of the tensor axis holds another; expert: whether the expert axis cuts it."""

    name: str
    shape: tuple[int, ...]
    cut: bool = False
    expert: bool = False

    @property
    def count(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def decays(self) -> bool:
        """Which group of the optimizer it is in: matrices decay, gains and biases do not."""
        return len(self.shape) > 1


def kind_of(model: ModelConfig, index: int) -> str:
    """What the block at `index` of a decoder is: embedding, positions, encoder, encoder_norm, cross, dense, experts, final_norm
    or head."""
    if index < 2:
        return ("embedding", "positions")[index]
    index -= 2
    pre = model.norm_position == "pre"
    if model.encoder_layers:
        if index < model.encoder_layers:
            return "encoder"
        index -= model.encoder_layers
        if pre:
            if index == 0:
                return "encoder_norm"
            index -= 1
    if index < model.layers:
        return "cross" if model.encoder_layers else "experts" if model.has_experts(index) else "dense"
    return "final_norm" if pre and index == model.layers else "head"


@lru_cache(maxsize=4096)
def parameters_of(model: ModelConfig, kind: str, tensor: int, expert: int) -> tuple[Parameter, ...]:
    """Parameters of a block of a kind on a rank of so many on the tensor and expert axes, in the order in which it makes
    them; names are those within the block."""
    hidden = model.hidden_size
    if kind == "embedding":
        return (Parameter("token.weight", (model.padded_vocab // tensor, hidden), tensor > 1),)
    if kind == "positions":
        return (Parameter("weight", (model.max_sequence, hidden)),) if model.positions == "learned" else ()
    if kind in ("final_norm", "encoder_norm"):
        return tuple(_norm(model, "norm"))
    if kind == "head":
        cut = tensor > 1
        return (
            ()
            if model.tied_embeddings
            else (Parameter("projection.weight", (model.padded_vocab // tensor, hidden), cut),)
        )
    found = [*_norm(model, "attention_norm"), *_attention(model, "attention.", tensor), *_norm(model, "ffn_norm")]
    if kind == "cross":
        found += [*_norm(model, "cross_norm"), *_attention(model, "cross.", tensor, apart=True)]
    found += (
        _experts(model, tensor, expert) if kind == "experts" else _feed(model, "feed_forward.", model.ffn_width, tensor)
    )
    return tuple(found)


def _norm(model: ModelConfig, name: str) -> list[Parameter]:
    found = [Parameter(f"{name}.weight", (model.hidden_size,))]
    return (
        [*found, Parameter(f"{name}.bias", (model.hidden_size,))] if model.norm == "layernorm" and model.bias else found
    )


def _column(name: str, inputs: int, outputs: int, tensor: int, bias: bool) -> list[Parameter]:
    """A layer that the tensor axis cuts along its outputs."""
    found = [Parameter(f"{name}.weight", (outputs // tensor, inputs), tensor > 1)]
    return [*found, Parameter(f"{name}.bias", (outputs // tensor,), tensor > 1)] if bias else found


def _row(name: str, inputs: int, outputs: int, tensor: int, bias: bool) -> list[Parameter]:
    """One that it cuts along its inputs; the bias is whole."""
    found = [Parameter(f"{name}.weight", (outputs, inputs // tensor), tensor > 1)]
    return [*found, Parameter(f"{name}.bias", (outputs,))] if bias else found


def _attention(model: ModelConfig, at: str, tensor: int, *, apart: bool = False) -> list[Parameter]:
    """Projections and query-key norms. apart: queries by themselves, as where they attend to an encoder."""
    width, hidden = model.head_width, model.hidden_size
    query, keys = model.heads * width, model.key_value_heads * width
    bias = model.bias or model.qkv_bias
    inputs = [("query", query), ("key_value", 2 * keys)] if apart else [("qkv", query + 2 * keys)]
    found = [one for name, outputs in inputs for one in _column(at + name, hidden, outputs, tensor, bias)]
    found += _row(f"{at}output", query, hidden, tensor, model.bias)
    for name, heads in (("query_norm", query), ("key_norm", keys)):
        if model.qk_norm:
            found.append(Parameter(f"{at}{name}.weight", (width,)))
        elif model.qk_norm_whole:
            found.append(Parameter(f"{at}{name}.weight", (heads // tensor,), tensor > 1))
    return found


def _feed(model: ModelConfig, at: str, width: int, tensor: int) -> list[Parameter]:
    up = width * (2 if model.gated else 1)
    found = _column(f"{at}up", model.hidden_size, up, tensor, model.bias)
    found += _row(f"{at}down", width, model.hidden_size, tensor, model.bias)
    if model.activation == "polynorm":
        found += [Parameter(f"{at}activation.weight", (3,)), Parameter(f"{at}activation.bias", (1,))]
    return found


def _experts(model: ModelConfig, tensor: int, expert: int) -> list[Parameter]:
    """Router, the experts of this rank one below the other, and those that every token passes through."""
    moe, hidden, width = model.moe, model.hidden_size, model.expert_width
    held, up = moe.experts // expert, width * (2 if model.gated else 1)
    at, cut = "feed_forward.", tensor > 1
    found = [Parameter(f"{at}router.weight", (moe.experts, hidden))]
    found.append(Parameter(f"{at}experts.up.weight", (held * up // tensor, hidden), cut, expert=True))
    if model.bias:
        found.append(Parameter(f"{at}experts.up.bias", (held * up // tensor,), cut, expert=True))
    found.append(Parameter(f"{at}experts.down.weight", (held * width // tensor, hidden), cut, expert=True))
    if model.bias:
        found.append(Parameter(f"{at}experts.down.bias", (held * hidden,), False, expert=True))
    if moe.shared_experts:
        found += _feed(model, f"{at}shared.", moe.shared_experts * width, tensor)
    if moe.shared_gate:
        found.append(Parameter(f"{at}shared_gate.weight", (1, hidden)))
    return found


@dataclass(frozen=True)
class Stage:
    """A stage of a rank. kinds: of its blocks in order; first: index of the first of them; copy: whether it has a copy of a
    tied embedding, as a last stage far from the first has."""

    index: int
    first: int
    kinds: tuple[str, ...]
    copy: bool

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many blocks of each kind it has, the copy as another embedding."""
        found = Counter(self.kinds)
        return dict(found + Counter({"embedding": 1})) if self.copy else dict(found)

    def parameters(self, model: ModelConfig, tensor: int, expert: int) -> list[tuple[Parameter, ...]]:
        """Those of each block, and of the copy."""
        found = [parameters_of(model, kind, tensor, expert) for kind in self.kinds]
        return [*found, parameters_of(model, "embedding", tensor, expert)] if self.copy else found


@lru_cache(maxsize=512)
def bounds_of(model: ModelConfig, stages: int, sequence_length: int) -> tuple[int, ...]:
    """Where `parallel.stages` cuts a pipeline; it searches, so it is asked once."""
    return tuple(stage_bounds(model, stages, sequence_length))


def _stage(model: ModelConfig, index: int, stages: int, sequence_length: int) -> Stage:
    bounds = bounds_of(model, stages, sequence_length)
    start, stop = bounds[index], bounds[index + 1]
    copy = model.tied_embeddings and stages > 1 and stop == block_count(model)
    return Stage(index, start, tuple(kind_of(model, block) for block in range(start, stop)), copy)


@lru_cache(maxsize=4096)
def _stages(model: ModelConfig, own: tuple[int, ...], stages: int, sequence_length: int) -> tuple[Stage, ...]:
    return tuple(_stage(model, index, stages, sequence_length) for index in own)


def stages_on(model: ModelConfig, parallel: ParallelConfig, rank: int, sequence_length: int) -> tuple[Stage, ...]:
    """Stages of a rank of the pipeline axis."""
    stages = stage_count(parallel)
    own = tuple(stages_of(parallel, rank)) if stages > 1 else (0,)
    return _stages(model, own, stages, sequence_length)


def has_head(parallel: ParallelConfig, rank: int) -> bool:
    """Whether a rank of the pipeline axis holds the last stage."""
    return owner(parallel, stage_count(parallel) - 1) == rank
