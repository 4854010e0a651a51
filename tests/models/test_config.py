"""What a model cannot be is refused by name; sizes left at 0, costs and FLOPs are what they say."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from models.blocks import block_costs, block_count
from models.config import (
    ACTIVATIONS,
    NORMS,
    POSITIONS,
    ModelConfig,
    ModelError,
    RopeScaling,
    count_parameters,
)
from models.core import visible
from models.decoder import Decoder, named_parameters
from models.flops import flops_per_token, mean_keys
from models.layers import PlainLayers
from tests.models.helpers import GPT, LLAMA, changed, random_decoder, random_tokens, run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "batchnorm"}, "model.norm=batchnorm: choose one of layernorm, rmsnorm"),
        ({"norm_position": "middle"}, "model.norm_position=middle"),
        ({"positions": "alibi"}, "model.positions=alibi"),
        ({"activation": "tanh"}, "model.activation=tanh"),
        ({"layers": 0}, "model.layers=0: must be at least 1"),
        ({"hidden_size": -256}, "model.hidden_size=-256: must be at least 1"),
        ({"vocab_multiple": 0}, "model.vocab_multiple=0"),
        ({"vocab_size": -1}, "model.vocab_size=-1: must be at least 0"),
        ({"kv_heads": -1}, "model.kv_heads=-1: must be at least 0"),
        ({"head_size": -8}, "model.head_size=-8"),
        ({"ffn_size": -8}, "model.ffn_size=-8"),
        ({"init_std": 0.0}, "model.init_std=0.0: must be above 0"),
        ({"norm_eps": 0.0}, "model.norm_eps=0.0: must be above 0"),
        ({"rope_theta": 0.0}, "model.rope_theta=0.0: must be above 0"),
        ({"dropout": 1.0}, "model.dropout=1.0: must be at least 0 and below 1"),
        ({"attention_dropout": -0.1}, "model.attention_dropout=-0.1"),
        ({"heads": 3}, "model.heads=3: does not divide model.hidden_size=256"),
        ({"kv_heads": 3}, "model.kv_heads=3: must divide model.heads=4"),
        ({"kv_heads": 8}, "model.kv_heads=8: must divide model.heads=4"),
        ({"head_size": 5}, "model.head_size=5: rotary positions turn pairs"),
        (
            {"positions": "learned", "rope_scaling": RopeScaling(factor=2.0)},
            "model.rope_scaling.factor=2.0: has no eff",
        ),
        ({"attention_window": -1}, "model.attention_window=-1: must be at least 0"),
        ({"document_mask": True, "document_end": -2}, "model.document_end=-2: must be a token, or -1"),
        ({"document_end": 3}, "model.document_end=3: has no effect with model.document_mask=false"),
        ({"bias": True, "qkv_bias": True}, "model.qkv_bias=true: has no effect with model.bias=true"),
    ],
)
def test_impossible_models_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        ModelConfig(**options)
    assert message in str(caught.value)


def test_impossible_rope_scaling_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"model.rope_scaling.factor=0.0: must be above 0"):
        RopeScaling(factor=0.0)
    with pytest.raises(ModelError, match=r"high_frequency_factor=1.0: must be above .*low_frequency_factor=1.0"):
        RopeScaling(high_frequency_factor=1.0)


def test_sizes_left_at_zero() -> None:
    config = ModelConfig(hidden_size=256, heads=4, vocab_size=1000, vocab_multiple=128)
    assert (config.key_value_heads, config.head_width, config.ffn_width, config.padded_vocab) == (4, 64, 704, 1024)
    assert changed(config, activation="gelu").ffn_width == 1024
    assert changed(config, kv_heads=2, head_size=32, ffn_size=100).ffn_width == 100


def test_formula_counts_what_every_combination_builds() -> None:
    """All 2,592 dialects on the meta device."""
    for norm, norm_position, positions, activation in itertools.product(NORMS, ("pre", "post"), POSITIONS, ACTIVATIONS):
        for kv_heads, (bias, qkv_bias), qk_norm, tied in itertools.product(
            (0, 1, 2), ((False, False), (False, True), (True, False)), (False, True), (False, True)
        ):
            config = ModelConfig(
                vocab_size=50,
                vocab_multiple=16,
                hidden_size=24,
                layers=1,
                heads=4,
                kv_heads=kv_heads,
                head_size=8,
                max_sequence=10,
                positions=positions,
                norm=norm,
                norm_position=norm_position,
                activation=activation,
                bias=bias,
                qkv_bias=qkv_bias,
                qk_norm=qk_norm,
                tied_embeddings=tied,
            )
            with torch.device("meta"):
                decoder = Decoder(config, PlainLayers())
            assert sum(parameter.numel() for parameter in decoder.parameters()) == count_parameters(config), config
            assert len(decoder.blocks) == block_count(config) == len(block_costs(config, 10))


@pytest.mark.parametrize(
    "config",
    [
        GPT,
        LLAMA,
        changed(LLAMA, tied_embeddings=True, head_size=16),
        changed(GPT, tied_embeddings=False, kv_heads=1),
        changed(LLAMA, activation="polynorm"),
    ],
)
def test_flops_equal_those_that_torch_counts(config: ModelConfig) -> None:
    """Exactly, up to two conventions: torch counts no gains and biases (we count 6 for each), and it counts the masked
    half of the attention scores (we do not)."""
    batch, length = 2, 32
    decoder, tokens = random_decoder(config), random_tokens(config, batch, length)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(decoder, tokens)
    vectors = sum(parameter.numel() for _, parameter in named_parameters(iter(decoder.blocks)) if parameter.dim() == 1)
    masked_half = 6 * config.layers * config.heads * config.head_width * length
    ours = flops_per_token(config, length) - 6 * vectors + masked_half
    assert counter.get_total_flops() == ours * batch * length


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [0, 1, 8, 100, 1000])
def test_flops_know_what_positions_see(causal: bool, window: int) -> None:
    """Half of the diagonal aside, which round numbers leave out."""
    length = 400
    config = changed(LLAMA, causal=causal, attention_window=window)
    seen = visible(causal, window, ((0, length),), ((0, length),), torch.device("cpu")).sum() / length
    assert mean_keys(config, length) == pytest.approx(float(seen), abs=1.01)
    plain = flops_per_token(config, length) - flops_per_token(LLAMA, 0)
    scores = 12 * config.layers * config.heads * config.head_width * mean_keys(config, length)
    assert plain == pytest.approx(scores, rel=1e-12)


def test_block_costs_add_up_to_the_models_flops() -> None:
    """A layer costs what the whole gains by it (gains and biases aside); the head costs its matrix."""
    for config in (GPT, LLAMA, changed(LLAMA, head_size=16, kv_heads=1)):
        deeper = changed(config, layers=config.layers + 1)
        with torch.device("meta"):
            layer = Decoder(config, PlainLayers(), 2, 3)
        vectors = sum(parameter.numel() for parameter in layer.parameters() if parameter.dim() == 1)
        gained = flops_per_token(deeper, 64) - flops_per_token(config, 64) - 6 * vectors
        costs = block_costs(config, 64)
        assert costs[2] == gained
        assert costs[-1] == 6 * config.hidden_size * config.padded_vocab
        assert sum(costs) == pytest.approx(flops_per_token(config, 64), rel=0.1)
