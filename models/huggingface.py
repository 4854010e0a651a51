"""Our weights under the names and shapes of Hugging Face checkpoints, and back.

A pure mapping of dictionaries of tensors, linear in them, so gradients map as weights do. Their families that can hold
our models: GPT-2, OPT, Llama, Qwen2 (biases on query, key and value alone) and Qwen3 (query-key norm).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig, ModelError
from models.decoder import Decoder, named_parameters
from models.layers import PlainLayers


@dataclass(frozen=True)
class Naming:
    """How one family calls its modules; a module of ours that fuses several of theirs lists them in our order."""

    prefix: str
    embedding: str
    positions: str
    final_norm: str
    layer: str
    modules: Mapping[str, tuple[str, ...]]
    transposed: bool = False  # linear weights stored [inputs, outputs]
    unused_positions: int = 0  # rows at the head of the position table that no token reaches


_LLAMA = Naming(
    prefix="model.",
    embedding="embed_tokens",
    positions="",
    final_norm="norm",
    layer="layers",
    modules={
        "attention_norm": ("input_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.query_norm": ("self_attn.q_norm",),
        "attention.key_norm": ("self_attn.k_norm",),
        "attention.output": ("self_attn.o_proj",),
        "ffn_norm": ("post_attention_layernorm",),
        "feed_forward.up": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.down": ("mlp.down_proj",),
    },
)
FAMILIES = {
    "gpt2": Naming(
        prefix="transformer.",
        embedding="wte",
        positions="wpe",
        final_norm="ln_f",
        layer="h",
        modules={
            "attention_norm": ("ln_1",),
            "attention.qkv": ("attn.c_attn",),
            "attention.output": ("attn.c_proj",),
            "ffn_norm": ("ln_2",),
            "feed_forward.up": ("mlp.c_fc",),
            "feed_forward.down": ("mlp.c_proj",),
        },
        transposed=True,
    ),
    "opt": Naming(
        prefix="model.decoder.",
        embedding="embed_tokens",
        positions="embed_positions",
        final_norm="final_layer_norm",
        layer="layers",
        modules={
            "attention_norm": ("self_attn_layer_norm",),
            "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attention.output": ("self_attn.out_proj",),
            "ffn_norm": ("final_layer_norm",),
            "feed_forward.up": ("fc1",),
            "feed_forward.down": ("fc2",),
        },
        unused_positions=2,
    ),
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}


def family(config: ModelConfig) -> str:
    """The Hugging Face family that computes the same function; raises where there is none."""
    plain = config.key_value_heads == config.heads and config.head_width * config.heads == config.hidden_size
    if (config.positions, config.norm, config.bias) == ("learned", "layernorm", True) and plain and not config.qk_norm:
        if config.activation == "relu":
            return "opt"
        if config.activation in ("gelu", "gelu_tanh", "squared_relu") and config.norm_position == "pre":
            return "gpt2"
    rotary = (config.positions, config.norm, config.norm_position) == ("rotary", "rmsnorm", "pre")
    if rotary and config.gated:
        if not config.qk_norm:
            return "qwen2" if config.qkv_bias and not config.bias else "llama"
        if not config.bias and not config.qkv_bias:
            return "qwen3"
    raise ModelError(
        f"model.name={config.name}: no Hugging Face family has this combination; GPT-2 and OPT need "
        "model.positions=learned, model.norm=layernorm, model.bias=true and an activation without gate, Llama and Qwen "
        "model.positions=rotary, model.norm=rmsnorm, model.norm_position=pre and a gated activation"
    )


def to_huggingface(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole logical tensors under our names -> theirs. Rows that only pad the vocabulary are left out; a tied head has
    no entry of its own, as in their files."""
    naming, shapes = FAMILIES[family(config)], logical_shapes(config)
    _refuse_difference(shapes.keys(), weights.keys(), config.name)
    theirs: dict[str, Tensor] = {}
    for ours, tensor in weights.items():
        names = _their_names(naming, ours)
        if ours in ("embedding.token.weight", "head.projection.weight"):
            tensor = tensor[: config.vocab_size]
        elif ours == "positions.weight":
            tensor = torch.cat((tensor.new_zeros(naming.unused_positions, tensor.shape[1]), tensor))
        sizes = _part_sizes(config, ours, tensor.shape[0], len(names))
        for name, part in zip(names, tensor.split(sizes), strict=True):
            theirs[name] = part.t() if _is_transposed(naming, ours) else part
    return theirs


def from_huggingface(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> whole logical tensors under ours. Rows that only pad the vocabulary become zero. Accepts their
    files as they are: a tied head that is stored twice, names without the model's prefix, buffers of old versions."""
    naming, shapes = FAMILIES[family(config)], logical_shapes(config)
    heads = (naming.prefix, "lm_head.")
    given = {
        name if name.startswith(heads) else naming.prefix + name: tensor
        for name, tensor in weights.items()
        if not _is_buffer(name)
    }
    if config.tied_embeddings:
        given.pop("lm_head.weight", None)
    wanted = {ours: _their_names(naming, ours) for ours in shapes}
    _refuse_difference({name for names in wanted.values() for name in names}, given.keys(), config.name)
    result: dict[str, Tensor] = {}
    for ours, names in wanted.items():
        parts = [given[name].t() if _is_transposed(naming, ours) else given[name] for name in names]
        tensor = torch.cat(parts)
        if ours == "positions.weight":
            tensor = tensor[naming.unused_positions :]
        elif ours in ("embedding.token.weight", "head.projection.weight"):
            tensor = torch.cat((tensor, tensor.new_zeros(config.padded_vocab - tensor.shape[0], tensor.shape[1])))
        if tuple(tensor.shape) != shapes[ours]:
            raise ModelError(f"{', '.join(names)}: shape {tuple(tensor.shape)} where the recipe says {shapes[ours]}")
        result[ours] = tensor
    return result


def logical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and whole shape of every parameter of the decoder, in order, without holding any."""
    with torch.device("meta"):
        blocks = Decoder(config, PlainLayers()).blocks
    return {name: tuple(parameter.shape) for name, parameter in named_parameters(iter(blocks))}


def _their_names(naming: Naming, ours: str) -> tuple[str, ...]:
    """`layers.3.attention.qkv.weight` -> the names of the tensors it is made of, in order."""
    if ours == "head.projection.weight":
        return ("lm_head.weight",)
    outside = {
        "embedding.token.weight": f"{naming.embedding}.weight",
        "positions.weight": f"{naming.positions}.weight",
        "final_norm.norm.weight": f"{naming.final_norm}.weight",
        "final_norm.norm.bias": f"{naming.final_norm}.bias",
    }
    if ours in outside:
        return (naming.prefix + outside[ours],)
    _, index, path = ours.split(".", 2)
    module, kind = path.rsplit(".", 1)
    return tuple(f"{naming.prefix}{naming.layer}.{index}.{name}.{kind}" for name in naming.modules[module])


def _part_sizes(config: ModelConfig, ours: str, rows: int, parts: int) -> list[int]:
    """Rows of each of the tensors that are fused in ours."""
    if parts == 3:
        key_value = config.key_value_heads * config.head_width
        return [config.heads * config.head_width, key_value, key_value]
    return [rows // parts] * parts


def _is_transposed(naming: Naming, ours: str) -> bool:
    linear = ("qkv.weight", "output.weight", "up.weight", "down.weight")
    return naming.transposed and ours.endswith(linear)


def _is_buffer(name: str) -> bool:
    """Masks and frequencies that old versions saved beside the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))


def _refuse_difference(expected: Iterable[str], given: Iterable[str], model: str) -> None:
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unknown:
        raise ModelError(
            f"weights do not fit model.name={model}: missing {missing[:3]} ({len(missing)} in all), "
            f"unknown {unknown[:3]} ({len(unknown)} in all)"
        )
