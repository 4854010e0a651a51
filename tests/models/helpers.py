"""What the model tests share: minute models with nothing left at a trivial value, and how far two results lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder, initialise_blocks, named_parameters
from models.layers import PlainLayers
from models.linear import cross_entropy
from models.moe.config import MoEConfig
from models.random import Clock, fill_normal, stream_key

GPT = ModelConfig(
    name="gpt",
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    max_sequence=96,
    positions="learned",
    norm="layernorm",
    activation="gelu_tanh",
    bias=True,
    tied_embeddings=True,
    init_std=0.2,
    scaled_residual_init=False,
)
LLAMA = ModelConfig(
    name="llama",
    vocab_size=61,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn_size=48,
    max_sequence=96,
    tied_embeddings=False,
    init_std=0.2,
    scaled_residual_init=False,
)
MIXTRAL = replace(LLAMA, name="mixtral", moe=MoEConfig(experts=4, top_k=2, expert_size=24, aux_loss=0.0))
OLMOE = replace(
    LLAMA,
    name="olmoe",
    qk_norm_whole=True,
    moe=MoEConfig(experts=8, top_k=3, expert_size=16, normalise=False, aux_loss=0.0),
)
QWEN2_MOE = replace(
    LLAMA,
    name="qwen2_moe",
    layers=4,
    qkv_bias=True,
    norm_eps=1e-6,
    moe=MoEConfig(
        experts=8,
        top_k=3,
        expert_size=16,
        shared_experts=2,
        shared_gate=True,
        normalise=False,
        aux_loss=0.0,
        first_dense=1,
        every=2,
    ),
)
DEEPSEEK = replace(
    LLAMA,
    name="deepseek",
    moe=MoEConfig(experts=8, top_k=3, expert_size=16, shared_experts=2, normalise=False, aux_loss=0.0, first_dense=1),
)


def random_decoder(
    config: ModelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 1,
    recompute: str = "none",
    clock: Clock | None = None,
) -> Decoder:
    """A decoder none of whose parameters is constant: gains lie around 1 and biases around 0, so a lost one is seen."""
    decoder = Decoder(config, PlainLayers(dtype, clock), recompute=recompute)
    initialise_blocks(iter(decoder.blocks), seed)
    for name, parameter in named_parameters(iter(decoder.blocks)):
        if parameter.dim() == 1:
            noise = torch.empty_like(parameter.data)
            fill_normal(noise, stream_key(seed, "test", name), tuple(noise.shape), (0,), 0.2)
            parameter.data.add_(noise)
    return decoder


def random_tokens(config: ModelConfig, batch: int, length: int, seed: int = 3) -> Tensor:
    """Tokens [B, S]."""
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def weights_of(decoder: Decoder) -> dict[str, Tensor]:
    """Detached copies of the parameters under their logical names."""
    return {name: parameter.detach().clone() for name, parameter in named_parameters(iter(decoder.blocks))}


def gradients_of(decoder: Decoder) -> dict[str, Tensor]:
    """Gradients under the parameters' logical names; every parameter must have one."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in named_parameters(iter(decoder.blocks)):
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.clone()
    return gradients


def run(decoder: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits [B, S, V], mean next-token loss, gradients by logical name."""
    decoder.zero_grad(set_to_none=True)
    logits = decoder(tokens)
    loss = cross_entropy(logits[:-1], tokens.t()[1:].contiguous()).mean()
    loss.backward()
    return logits.detach().transpose(0, 1), loss.detach(), gradients_of(decoder)


def error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest element of the reference."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def worst_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest `error` of two dictionaries of tensors, and whose it is."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    return max((error(ours[name], theirs[name]), name) for name in theirs)


def changed(config: Any, **options: Any) -> Any:
    """The same model with other options."""
    return replace(config, **options)
