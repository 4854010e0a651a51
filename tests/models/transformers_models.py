"""Hugging Face transformers' models of the same shape as ours, with random weights and eager attention."""

from __future__ import annotations

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from models.config import ModelConfig
from models.huggingface import family

THEIR_ACTIVATION = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "squared_relu": "relu2",
    "relu": "relu",
    "swiglu": "silu",
    "geglu": "gelu",
}


def gpt2(config: ModelConfig) -> PreTrainedModel:
    """Their GPT-2 of this shape."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_sequence,
            n_embd=config.hidden_size,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.ffn_width,
            activation_function=THEIR_ACTIVATION[config.activation],
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            layer_norm_epsilon=config.norm_eps,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=config.tied_embeddings,
            attn_implementation="eager",
        )
    )


def opt(config: ModelConfig) -> PreTrainedModel:
    """Their OPT of this shape. No padding token: its embedding would get no gradient."""
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            word_embed_proj_dim=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            ffn_dim=config.ffn_width,
            max_position_embeddings=config.max_sequence,
            do_layer_norm_before=config.norm_position == "pre",
            dropout=0.0,
            tie_word_embeddings=config.tied_embeddings,
            pad_token_id=None,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
    )


def llama_like(config: ModelConfig) -> PreTrainedModel:
    """Their Llama, Qwen2 or Qwen3 of this shape."""
    scaling = config.rope_scaling
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if scaling.factor != 1:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_sequence,
        }
    options = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "hidden_act": THEIR_ACTIVATION[config.activation],
        "max_position_embeddings": config.max_sequence,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_embeddings,
        "attn_implementation": "eager",
    }
    if config.qk_norm:
        return Qwen3ForCausalLM(Qwen3Config(**options))
    if config.qkv_bias:
        return Qwen2ForCausalLM(Qwen2Config(**options))
    return LlamaForCausalLM(LlamaConfig(**options, attention_bias=config.bias, mlp_bias=config.bias))


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    """Their model that computes the same function."""
    builder = {"gpt2": gpt2, "opt": opt}.get(family(config), llama_like)
    return builder(config)
