"""Compares our decoder with megatron-core's own GPTModel on CPU and prints the errors as one JSON object.

Run as a program (`python -m tests.models.megatron_oracle`) by test_oracle_megatron.py: megatron-core keeps its process
groups and random states in module globals, which must not leak into other tests.
"""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.activations import squared_relu
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from models.config import ModelConfig, RopeScaling
from models.linear import cross_entropy
from tests.models.cuda_stand_in import cuda_stand_in
from tests.models.helpers import (
    GPT,
    LLAMA,
    changed,
    error,
    gradients_of,
    random_decoder,
    random_tokens,
    weights_of,
    worst_error,
)

LENGTH = 96
DIALECTS = {
    "gpt": changed(GPT, activation="gelu"),
    "gpt-untied-grouped": changed(GPT, activation="gelu", tied_embeddings=False, kv_heads=2),
    "gpt-squared-relu": changed(GPT, activation="squared_relu"),
    "llama": LLAMA,
    "llama-tied-multi-query": changed(LLAMA, tied_embeddings=True, kv_heads=1),
    "llama-stretched": changed(LLAMA, rope_scaling=RopeScaling(factor=8.0)),
    "llama-qk-norm-wide-heads": changed(LLAMA, qk_norm=True, head_size=16),
    "llama-geglu-biases": changed(LLAMA, activation="geglu", bias=True),
    "qwen2": changed(LLAMA, qkv_bias=True),
    "rotary-layernorm": changed(LLAMA, norm="layernorm", bias=True, activation="gelu"),
}
ACTIVATIONS = {"gelu": F.gelu, "squared_relu": squared_relu, "swiglu": F.silu, "geglu": F.gelu}


def megatron_model(config: ModelConfig) -> GPTModel:
    """Their GPTModel of this shape, from their local (not TransformerEngine) layers, every fusion off."""
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[config.norm]
    transformer = TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.ffn_width,
        num_attention_heads=config.heads,
        num_query_groups=config.key_value_heads,
        kv_channels=config.head_width,
        normalization=norm,
        layernorm_epsilon=config.norm_eps,
        gated_linear_unit=config.gated,
        activation_func=ACTIVATIONS[config.activation],
        add_bias_linear=config.bias,
        add_qkv_bias=config.qkv_bias,
        qk_layernorm=config.qk_norm,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
    )
    return GPTModel(
        transformer,
        get_gpt_layer_local_spec(normalization=norm, qk_layernorm=config.qk_norm),
        vocab_size=config.padded_vocab,
        max_sequence_length=config.max_sequence,
        position_embedding_type={"learned": "learned_absolute", "rotary": "rope"}[config.positions],
        rotary_base=int(config.rope_theta),
        rope_scaling=config.rope_scaling.factor != 1,
        rope_scaling_factor=config.rope_scaling.factor,
        share_embeddings_and_output_weights=config.tied_embeddings,
    )


RENAMED = {
    "embedding.token.weight": "embedding.word_embeddings.weight",
    "positions.weight": "embedding.position_embeddings.weight",
    "head.projection.weight": "output_layer.weight",
}
RENAMED_PARTS = {
    "final_norm.norm": "decoder.final_layernorm",
    "layers.": "decoder.layers.",
    "attention_norm": "input_layernorm",
    "attention.qkv": "self_attention.linear_qkv",
    "attention.output": "self_attention.linear_proj",
    "attention.query_norm": "self_attention.q_layernorm",
    "attention.key_norm": "self_attention.k_layernorm",
    "ffn_norm": "pre_mlp_layernorm",
    "feed_forward.up": "mlp.linear_fc1",
    "feed_forward.down": "mlp.linear_fc2",
}


def to_megatron(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights (or gradients) under megatron-core's names and in its order of rows."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        renamed = RENAMED.get(name, name)
        for ours, part in RENAMED_PARTS.items():
            renamed = renamed.replace(ours, part) if name not in RENAMED else renamed
        theirs[renamed] = interleaved(config, tensor) if ".qkv." in name else tensor
    return theirs


def interleaved(config: ModelConfig, qkv: Tensor) -> Tensor:
    """Rows [all queries, all keys, all values] -> for each group its queries, its key, its value."""
    width, groups = config.head_width, config.key_value_heads
    query, key, value = qkv.split([config.heads * width, groups * width, groups * width])
    by_group = [part.reshape(groups, -1, *part.shape[1:]) for part in (query, key, value)]
    return torch.cat(by_group, dim=1).flatten(0, 1)


def compare(config: ModelConfig) -> dict[str, float | str]:
    """Errors of logits, per-token loss and gradients of our decoder against theirs."""
    ours, theirs = random_decoder(config), megatron_model(config)
    report = theirs.load_state_dict(to_megatron(config, weights_of(ours)), strict=False)
    assert not report.unexpected_keys, report
    assert all(name.endswith("_extra_state") for name in report.missing_keys), report
    tokens = random_tokens(config, 3, LENGTH)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    positions = torch.arange(LENGTH - 1).expand_as(inputs)

    logits = ours(inputs)
    losses = cross_entropy(logits, targets.t().contiguous())
    losses.mean().backward()
    with torch.no_grad():
        their_logits = theirs(inputs, positions, None)
    their_losses = theirs(inputs, positions, None, labels=targets)
    their_losses.mean().backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    gradient_error, where = worst_error(to_megatron(config, gradients_of(ours)), their_gradients)
    return {
        "logits": error(logits.detach().transpose(0, 1), their_logits),
        "losses": error(losses.detach().t(), their_losses.detach()),
        "gradients": gradient_error,
        "where": where,
    }


def main() -> None:
    """All dialects in one process group of one rank."""
    torch.set_num_threads(1)
    with cuda_stand_in(), torch.compiler.set_stance("force_eager"):  # their "jit_fuser" would compile for 10 seconds
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        model_parallel_cuda_manual_seed(1)
        print(json.dumps({name: compare(config) for name, config in DIALECTS.items()}))
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
