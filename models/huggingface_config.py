"""Our model configuration as the `config.json` of a Hugging Face checkpoint, and back."""

from __future__ import annotations

from typing import Any

from models.config import ModelConfig, ModelError, RopeScaling
from models.huggingface import family
from models.moe.config import MoEConfig

CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "deepseek": "DeepseekForCausalLM",
}
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "squared_relu": "relu2",
    "relu": "relu",
    "swiglu": "silu",
    "geglu": "gelu",
    "geglu_tanh": "gelu_pytorch_tanh",
}
_PLAIN = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu2": "squared_relu",
    "relu": "relu",
}
_GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
}


def to_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """What transformers' AutoModelForCausalLM builds the same function from. dtype: of the weights beside it."""
    kind = family(config)
    common = {
        "model_type": kind,
        "architectures": [CLASSES[kind]],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return common | {"gpt2": _gpt2, "opt": _opt}.get(kind, _llama)(config)


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_positions": config.max_sequence,
        "n_embd": config.hidden_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ffn_width,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "layer_norm_epsilon": config.norm_eps,
        "initializer_range": config.init_std,
    }


def _opt(config: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "word_embed_proj_dim": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.ffn_width,
        "max_position_embeddings": config.max_sequence,
        "do_layer_norm_before": config.norm_position == "pre",
        "activation_function": ACTIVATIONS[config.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_std": config.init_std,
    }


def _llama(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    rope: dict[str, Any] = {"rope_type": "default"}
    if scaling.factor != 1:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_sequence,
        }
    found = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "hidden_act": ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_sequence,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.init_std,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        # the two names that transformers 4 knows
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling.factor == 1 else rope,
        "attention_dropout": config.attention_dropout,
    }
    if family(config) == "llama":
        found |= {"attention_bias": config.bias, "mlp_bias": config.bias}
    if family(config) == "mistral":
        found |= {"sliding_window": config.attention_window}
    return found | (_experts(config) if config.moe.experts else {})


def _experts(config: ModelConfig) -> dict[str, Any]:
    moe, kind = config.moe, family(config)
    found: dict[str, Any] = {"num_experts_per_tok": moe.top_k, "router_aux_loss_coef": moe.aux_loss}
    if kind == "mixtral":
        return found | {
            "num_local_experts": moe.experts,
            "intermediate_size": config.expert_width,
            "router_jitter_noise": moe.jitter,
            "sliding_window": None,
        }
    found["norm_topk_prob"] = moe.normalise
    if kind == "olmoe":
        return found | {"num_experts": moe.experts, "intermediate_size": config.expert_width, "clip_qkv": None}
    found["moe_intermediate_size"] = config.expert_width
    if kind == "qwen2_moe":
        return found | {
            "num_experts": moe.experts,
            "shared_expert_intermediate_size": moe.shared_experts * config.expert_width,
            "decoder_sparse_step": moe.every,
            "mlp_only_layers": list(range(moe.first_dense)),
            "use_sliding_window": False,
        }
    return found | {  # the layout of deepseek-ai/deepseek-moe-16b-base, whose class comes with its files
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared_experts,
        "first_k_dense_replace": moe.first_dense,
        "moe_layer_freq": moe.every,
        "scoring_func": "softmax",
        "aux_loss_alpha": moe.aux_loss,
        "seq_aux": False,
        "auto_map": {
            "AutoConfig": "configuration_deepseek.DeepseekConfig",
            "AutoModel": "modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
        },
    }


def from_config(theirs: dict[str, Any], name: str) -> ModelConfig:
    """The model of their config.json; ModelError names what we have no option for."""
    kind = theirs.get("model_type")
    readers = {"gpt2": _from_gpt2, "opt": _from_opt} | dict.fromkeys(set(CLASSES) - {"gpt2", "opt"}, _from_llama)
    if kind not in readers:
        raise ModelError(f"config.json: model_type={kind}: choose a model of {', '.join(CLASSES)}")
    tied = theirs.get("tie_word_embeddings", kind in ("gpt2", "opt"))
    return ModelConfig(name=name, vocab_size=theirs["vocab_size"], tied_embeddings=tied, **readers[kind](theirs))


def _refuse(theirs: dict[str, Any], **plain: Any) -> None:
    """Options that change the function and that we do not have: they must be absent or have their plain value."""
    for option, value in plain.items():
        if theirs.get(option, value) not in (value, None):
            raise ModelError(f"config.json: {option}={theirs[option]}: only {value} can be taken over")


def _activation(known: dict[str, str], name: str) -> str:
    if name not in known:
        raise ModelError(f"config.json: activation {name}: choose a model with one of {', '.join(known)}")
    return known[name]


def _from_gpt2(theirs: dict[str, Any]) -> dict[str, Any]:
    _refuse(theirs, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    return {
        "hidden_size": theirs["n_embd"],
        "layers": theirs["n_layer"],
        "heads": theirs["n_head"],
        "ffn_size": theirs.get("n_inner") or 4 * theirs["n_embd"],
        "max_sequence": theirs["n_positions"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_eps": theirs.get("layer_norm_epsilon", 1e-5),
        "activation": _activation(_PLAIN, theirs.get("activation_function", "gelu_new")),
        "bias": True,
        "dropout": theirs.get("resid_pdrop", 0.1),
        "attention_dropout": theirs.get("attn_pdrop", 0.1),
    }


def _from_opt(theirs: dict[str, Any]) -> dict[str, Any]:
    _refuse(theirs, word_embed_proj_dim=theirs["hidden_size"], enable_bias=True, layer_norm_elementwise_affine=True)
    return {
        "hidden_size": theirs["hidden_size"],
        "layers": theirs["num_hidden_layers"],
        "heads": theirs["num_attention_heads"],
        "ffn_size": theirs["ffn_dim"],
        "max_sequence": theirs["max_position_embeddings"],
        "positions": "learned",
        "norm": "layernorm",
        "norm_position": "pre" if theirs.get("do_layer_norm_before", True) else "post",
        "activation": _activation(_PLAIN, theirs.get("activation_function", "relu")),
        "bias": True,
        "dropout": theirs.get("dropout", 0.1),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
    }


def _from_llama(theirs: dict[str, Any]) -> dict[str, Any]:
    kind = theirs["model_type"]
    bias = bool(theirs.get("attention_bias", False))
    _refuse(theirs, use_sliding_window=False, mlp_bias=bias if kind == "llama" else False, pretraining_tp=1)
    if kind == "qwen3":
        _refuse(theirs, attention_bias=False)
    moe = _from_experts(theirs) if kind in _EXPERT_READERS else {}
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    return {
        "hidden_size": theirs["hidden_size"],
        "layers": theirs["num_hidden_layers"],
        "heads": theirs["num_attention_heads"],
        "kv_heads": theirs.get("num_key_value_heads") or 0,
        "head_size": theirs.get("head_dim") or 0,
        "ffn_size": theirs["intermediate_size"],
        "max_sequence": theirs["max_position_embeddings"],
        "positions": "rotary",
        "rope_theta": float(rope.get("rope_theta") or theirs.get("rope_theta") or 10000.0),
        "rope_scaling": _scaling(rope),
        "norm": "rmsnorm",
        "norm_eps": theirs.get("rms_norm_eps", 1e-6),
        "activation": _activation(_GATED, theirs.get("hidden_act", "silu")),
        "bias": bias if kind == "llama" else False,
        "qkv_bias": theirs.get("qkv_bias", True) if kind == "qwen2_moe" else kind == "qwen2",
        "qk_norm": kind == "qwen3",
        "attention_window": (theirs.get("sliding_window") or 0) if kind == "mistral" else 0,
        "attention_dropout": theirs.get("attention_dropout", 0.0),
        **moe,
    }


def _from_experts(theirs: dict[str, Any]) -> dict[str, Any]:
    """The options of our model that a family with experts adds or has otherwise."""
    moe, others = _EXPERT_READERS[theirs["model_type"]](theirs)
    moe |= {"top_k": theirs["num_experts_per_tok"], "aux_loss": theirs.get("router_aux_loss_coef") or 0.0}
    return {"moe": MoEConfig(**moe), **others}


def _from_mixtral(theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    _refuse(theirs, sliding_window=None)
    return {"experts": theirs["num_local_experts"], "jitter": theirs.get("router_jitter_noise") or 0.0}, {}


def _from_olmoe(theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    _refuse(theirs, clip_qkv=None, attention_bias=False)
    return {"experts": theirs["num_experts"], "normalise": bool(theirs.get("norm_topk_prob"))}, {"qk_norm_whole": True}


def _from_qwen2_moe(theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    width, shared = theirs["moe_intermediate_size"], theirs["shared_expert_intermediate_size"]
    first = len(theirs.get("mlp_only_layers") or [])
    _refuse(theirs, mlp_only_layers=list(range(first)))
    if shared % width:
        raise ModelError(
            f"config.json: shared_expert_intermediate_size={shared}: only multiples of moe_intermediate_size={width} can be "
            "taken over"
        )
    moe = {
        "experts": theirs["num_experts"],
        "expert_size": width,
        "shared_experts": shared // width,
        "shared_gate": True,
    }
    more = {"first_dense": first, "every": theirs.get("decoder_sparse_step", 1)}
    return moe | more | {"normalise": bool(theirs.get("norm_topk_prob"))}, {}


def _from_deepseek(theirs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    _refuse(
        theirs, scoring_func="softmax", seq_aux=False if not theirs.get("aux_loss_alpha") else theirs.get("seq_aux")
    )
    moe = {
        "experts": theirs["n_routed_experts"],
        "expert_size": theirs["moe_intermediate_size"],
        "shared_experts": theirs.get("n_shared_experts") or 0,
        "first_dense": theirs.get("first_k_dense_replace", 0),
        "every": theirs.get("moe_layer_freq", 1),
        "normalise": bool(theirs.get("norm_topk_prob")),
    }
    return moe, {}


_EXPERT_READERS = {
    "mixtral": _from_mixtral,
    "olmoe": _from_olmoe,
    "qwen2_moe": _from_qwen2_moe,
    "deepseek": _from_deepseek,
}


def _scaling(rope: dict[str, Any]) -> RopeScaling:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return RopeScaling()
    if kind != "llama3":
        raise ModelError(f"config.json: rope_type={kind}: only default and llama3 can be taken over")
    return RopeScaling(
        factor=rope["factor"],
        low_frequency_factor=rope["low_freq_factor"],
        high_frequency_factor=rope["high_freq_factor"],
        original_sequence=rope["original_max_position_embeddings"],
    )
