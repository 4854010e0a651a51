"""Our weights under the names and shapes of Hugging Face checkpoints, and back.

A pure mapping of dictionaries of tensors, linear in them, so gradients map as weights do. Their families that can hold
our models: GPT-2, OPT, Llama, Qwen2 (biases on query, key and value alone) and Qwen3 (query-key norm); with experts Mixtral,
OLMoE (query-key norm over all heads), Qwen2-MoE and DeepSeekMoE (shared experts, with and without a gate), which store one
tensor for each matrix of each expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.config import ModelConfig, ModelError
from models.decoder import Decoder, named_parameters
from models.layers import PlainLayers


@dataclass(frozen=True)
class Naming:
    """How one family calls its modules; a module of ours that fuses several of theirs lists them in our order, and names of
    experts' matrices have {} for the expert's index."""

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


def _with_experts(router: str, experts: tuple[str, str, str], shared: str = "") -> Naming:
    """Llama's names with those of mixture layers. experts: gate, up and down projection of one."""
    gate, up, down = experts
    modules = {
        "feed_forward.router": (router,),
        "feed_forward.experts.up": (gate, up),
        "feed_forward.experts.down": (down,),
        "feed_forward.shared.up": (f"{shared}.gate_proj", f"{shared}.up_proj"),
        "feed_forward.shared.down": (f"{shared}.down_proj",),
        "feed_forward.shared_gate": (f"{shared}_gate",),
    }
    return replace(_LLAMA, modules={**_LLAMA.modules, **modules})


_EXPERTS = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
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
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "mixtral": _with_experts(
        "block_sparse_moe.gate",
        ("block_sparse_moe.experts.{}.w1", "block_sparse_moe.experts.{}.w3", "block_sparse_moe.experts.{}.w2"),
    ),
    "olmoe": _with_experts("mlp.gate", _EXPERTS),
    "qwen2_moe": _with_experts("mlp.gate", _EXPERTS, "mlp.shared_expert"),
    "deepseek": _with_experts("mlp.gate", _EXPERTS, "mlp.shared_experts"),
}


def family(config: ModelConfig) -> str:
    """The Hugging Face family that computes the same function; raises where there is none."""
    if any(factor != 1 for factor in config.scales.multipliers.values()):
        raise ModelError(
            f"model.parametrization.kind={config.parametrization.kind}: no Hugging Face family here has its multipliers; fold "
            "them into the weights first (models.folding)"
        )
    if config.encoder_layers:
        raise ModelError(
            f"model.encoder_layers={config.encoder_layers}: no Hugging Face family here computes the same function (T5 has "
            "relative biases); keep the checkpoint as it is"
        )
    if not config.causal:
        raise ModelError("model.causal=false: no Hugging Face family here sees what comes after; set model.causal=true")
    if config.attention_window:
        return _windowed(config)
    plain = config.key_value_heads == config.heads and config.head_width * config.heads == config.hidden_size
    normed = config.qk_norm or config.qk_norm_whole
    learned = (config.positions, config.norm, config.bias) == ("learned", "layernorm", True)
    if learned and plain and not normed and not config.moe.experts:
        if config.activation == "relu":
            return "opt"
        if config.activation in ("gelu", "gelu_tanh", "squared_relu") and config.norm_position == "pre":
            return "gpt2"
    if config.moe.experts:
        return _family_with_experts(config)
    rotary = (config.positions, config.norm, config.norm_position) == ("rotary", "rmsnorm", "pre")
    if rotary and config.gated and not config.qk_norm_whole:
        if not config.qk_norm:
            return "qwen2" if config.qkv_bias and not config.bias else "llama"
        if not config.bias and not config.qkv_bias:
            return "qwen3"
    raise ModelError(
        f"model.name={config.name}: no Hugging Face family has this combination; GPT-2 and OPT need "
        "model.positions=learned, model.norm=layernorm, model.bias=true and an activation without gate, Llama and Qwen "
        "model.positions=rotary, model.norm=rmsnorm, model.norm_position=pre and a gated activation"
    )


def _family_with_experts(config: ModelConfig) -> str:
    moe = config.moe
    rotary = (config.positions, config.norm, config.norm_position) == ("rotary", "rmsnorm", "pre")
    plain = (moe.scoring, moe.scale, moe.top_groups, moe.capacity, moe.bias_rate) == (
        "softmax",
        1.0,
        moe.groups,
        0.0,
        0.0,
    )
    if rotary and plain and config.activation == "swiglu" and not config.bias and not config.qk_norm:
        every_layer = moe.first_dense == 0 and moe.every == 1
        simple = every_layer and not moe.shared_experts and not config.qkv_bias
        if simple and moe.normalise and not config.qk_norm_whole:
            return "mixtral"
        if simple and config.qk_norm_whole:
            return "olmoe"
        if config.qkv_bias and moe.shared_gate and not config.qk_norm_whole:
            return "qwen2_moe"
        if moe.shared_experts and not moe.shared_gate and not config.qkv_bias and not config.qk_norm_whole:
            return "deepseek"
    raise ModelError(
        f"model.name={config.name}: no Hugging Face family has this mixture; Mixtral, OLMoE, Qwen2-MoE and DeepSeekMoE need "
        "rotary positions, RMSNorm before, SwiGLU, model.moe.scoring=softmax, scale=1, no groups, capacity or bias_rate; the "
        "first two experts in every layer and none shared, Qwen2-MoE model.qkv_bias=true and a gate on shared experts, "
        "DeepSeekMoE shared experts without a gate"
    )


def _windowed(config: ModelConfig) -> str:
    if family(replace(config, attention_window=0)) == "llama" and not config.bias:
        return "mistral"
    raise ModelError(
        f"model.attention_window={config.attention_window}: no Hugging Face family but Mistral has it in every layer, and that "
        "is Llama without biases; set model.attention_window=0"
    )


@dataclass(frozen=True)
class Part:
    """One of their tensors as rows of one of ours. start, rows: in ours; skip: rows at the head of theirs that ours lacks."""

    name: str
    start: int
    rows: int
    skip: int = 0
    transposed: bool = False

    def take(self, ours: Tensor) -> Tensor:
        """Their tensor from our whole one; what they have beyond it is zero."""
        part = ours[self.start : self.start + self.rows]
        part = part.t() if self.transposed else part
        return torch.cat((part.new_zeros(self.skip, *part.shape[1:]), part)) if self.skip else part

    def give(self, theirs: Tensor) -> Tensor:
        """The rows of our tensor that theirs holds, as a view."""
        return (theirs.t() if self.transposed else theirs)[self.skip :]


def parts_of(config: ModelConfig, ours: str, shape: tuple[int, ...]) -> list[Part]:
    """Their tensors that one of ours is made of, in the order of its rows. Rows that only pad the vocabulary are in none."""
    naming = FAMILIES[family(config)]
    names = _their_names(naming, ours, config.moe.experts)
    if ours in ("embedding.token.weight", "head.projection.weight"):
        return [Part(names[0], 0, config.vocab_size)]
    if ours == "positions.weight":
        return [Part(names[0], 0, shape[0], skip=naming.unused_positions)]
    sizes, found, start = _part_sizes(config, ours, shape[0], len(names)), [], 0
    for name, rows in zip(names, sizes, strict=True):
        found.append(Part(name, start, rows, transposed=_is_transposed(naming, ours)))
        start += rows
    return found


def to_huggingface(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole logical tensors under our names -> theirs. Rows that only pad the vocabulary are left out; a tied head has
    no entry of its own, as in their files."""
    _refuse_difference(logical_shapes(config).keys(), weights.keys(), config.name)
    return {
        part.name: part.take(tensor)
        for ours, tensor in weights.items()
        for part in parts_of(config, ours, tuple(tensor.shape))
    }


def from_huggingface(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> whole logical tensors under ours. Rows that only pad the vocabulary become zero. Accepts their
    files as they are: a tied head that is stored twice, names without the model's prefix, buffers of old versions."""
    given = {expected: weights[stored] for expected, stored in match_names(config, weights).items()}
    result: dict[str, Tensor] = {}
    for ours, shape in logical_shapes(config).items():
        parts = parts_of(config, ours, shape)
        rows = [part.give(given[part.name]) for part in parts]
        tensor = torch.cat(rows)
        tensor = torch.cat((tensor, tensor.new_zeros(shape[0] - sum(part.rows for part in parts), *tensor.shape[1:])))
        if tuple(tensor.shape) != shape or any(len(r) != part.rows for r, part in zip(rows, parts, strict=True)):
            names = ", ".join(part.name for part in parts)
            raise ModelError(f"{names}: shape {tuple(tensor.shape)} where the recipe says {shape}")
        result[ours] = tensor
    return result


def match_names(config: ModelConfig, stored: Iterable[str]) -> dict[str, str]:
    """Every name that the model needs -> the name it is stored under. ModelError where names are missing or unknown."""
    naming = FAMILIES[family(config)]
    heads = (naming.prefix, "lm_head.")
    given = {name if name.startswith(heads) else naming.prefix + name: name for name in stored if not _is_buffer(name)}
    if config.tied_embeddings:
        given.pop("lm_head.weight", None)
    wanted = {part.name for ours, shape in logical_shapes(config).items() for part in parts_of(config, ours, shape)}
    _refuse_difference(wanted, given.keys(), config.name)
    return given


def logical_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and whole shape of every parameter of the decoder, in order, without holding any."""
    with torch.device("meta"):
        blocks = Decoder(config, PlainLayers()).blocks
    return {name: tuple(parameter.shape) for name, parameter in named_parameters(iter(blocks))}


def _their_names(naming: Naming, ours: str, experts: int) -> tuple[str, ...]:
    """`layers.3.attention.qkv.weight` -> the names of the tensors it is made of, in order; of experts' one after the other."""
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
    names = naming.modules[module]
    if "{}" in names[0]:
        names = tuple(name.format(expert) for expert in range(experts) for name in names)
    return tuple(f"{naming.prefix}{naming.layer}.{index}.{name}.{kind}" for name in names)


def _part_sizes(config: ModelConfig, ours: str, rows: int, parts: int) -> list[int]:
    """Rows of each of the tensors that are fused in ours."""
    if ours.endswith(("qkv.weight", "qkv.bias")) and parts == 3:
        key_value = config.key_value_heads * config.head_width
        return [config.heads * config.head_width, key_value, key_value]
    return [rows // parts] * parts


def _is_transposed(naming: Naming, ours: str) -> bool:
    if ours.endswith("experts.down.weight"):  # ours is stored transposed
        return not naming.transposed
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
