"""The decoder as blocks: slices equal the whole, initial weights are what they should be, no token sees the future, and
every dialect's gradients are its derivative."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, rotary_table
from models.blocks import block_count
from models.config import ACTIVATIONS, NORMS, POSITIONS, ModelConfig, RopeScaling
from models.decoder import Decoder, FinalNorm, HeadBlock, initialise_blocks, named_parameters
from models.kernels.rotary import rotate
from models.layers import PlainLayers
from models.linear import cross_entropy
from tests.models.helpers import GPT, LLAMA, changed, error, random_decoder, random_tokens, run, weights_of


def slices(config: ModelConfig, cuts: list[int], seed: int) -> list[Decoder]:
    """The decoder cut before these blocks, each part initialised alone."""
    borders = [0, *cuts, block_count(config)]
    parts = [Decoder(config, PlainLayers(), start, stop) for start, stop in itertools.pairwise(borders)]
    for part in parts:
        initialise_blocks(iter(part.blocks), seed)
    return parts


@pytest.mark.parametrize(
    "config", [LLAMA, changed(GPT, tied_embeddings=False), changed(LLAMA, norm_position="post")], ids=lambda c: c.name
)
def test_slices_in_a_row_equal_the_whole_bitwise(config: ModelConfig) -> None:
    tokens = random_tokens(config, 2, 24)
    whole = slices(config, [], 5)[0]
    expected = run(whole, tokens)
    names = [name for name, _ in named_parameters(iter(whole.blocks))]
    for cuts in [[i] for i in range(1, block_count(config))] + [[1, 2, 4], list(range(1, block_count(config)))]:
        parts = slices(config, cuts, 5)
        assert [name for part in parts for name, _ in named_parameters(iter(part.blocks))] == names
        x = tokens
        for part in parts:
            x = part(x)
        cross_entropy(x[:-1], tokens.t()[1:].contiguous()).mean().backward()
        assert torch.equal(x.transpose(0, 1), expected[0])
        for part in parts:
            for name, parameter in named_parameters(iter(part.blocks)):
                assert torch.equal(parameter.grad, expected[2][name]), name


def test_tied_head_is_handed_the_embedding() -> None:
    config = changed(LLAMA, tied_embeddings=True)
    tokens = random_tokens(config, 2, 24)
    whole = random_decoder(config)
    last = whole.blocks[-1]
    assert isinstance(last, HeadBlock)
    assert not list(last.parameters())
    x: Tensor = tokens
    for block in whole.blocks[:-1]:
        x = block(x)
    assert torch.equal(last(x, whole.blocks[0].token.weight), whole(tokens))
    with pytest.raises(AssertionError, match="tied head without its embedding"):
        Decoder(config, PlainLayers(), 2)(torch.zeros(4, 2, config.hidden_size))


def test_initial_weights() -> None:
    """Normal with the stated deviation, divided by sqrt(2 x layers) into the residual stream; gains 1, biases 0."""
    config = changed(GPT, hidden_size=128, vocab_size=500, layers=3, init_std=0.02, scaled_residual_init=True)
    decoder = Decoder(config, PlainLayers())
    initialise_blocks(iter(decoder.blocks), 0)
    for name, parameter in named_parameters(iter(decoder.blocks)):
        if parameter.dim() == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float("norm.weight" in name))), name
            continue
        into_residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
        std = 0.02 / math.sqrt(6) if into_residual else 0.02
        count = parameter.numel()
        assert parameter.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * count)), name
        assert abs(parameter.mean().item()) < 4 * std / math.sqrt(count), name


def test_initial_weights_differ_between_layers_and_seeds_and_not_between_runs() -> None:
    def build(seed: int) -> dict[str, Tensor]:
        decoder = Decoder(LLAMA, PlainLayers())
        initialise_blocks(iter(decoder.blocks), seed)
        return weights_of(decoder)

    first, again, other = build(0), build(0), build(1)
    matrices = {name for name, value in first.items() if value.dim() == 2}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in matrices)
    for a, b in itertools.combinations(matrices, 2):
        assert not torch.equal(first[a].flatten()[:100], first[b].flatten()[:100]), (a, b)


def combinations(count: int) -> list[ModelConfig]:
    """Dialects drawn from all, and always those with a name of their own."""
    choices: dict[str, tuple[Any, ...]] = {
        "norm": NORMS,
        "norm_position": ("pre", "post"),
        "positions": POSITIONS,
        "activation": ACTIVATIONS,
        "kv_heads": (0, 1, 2),
        "bias": (False, True),
        "qk_norm": (False, True),
        "tied_embeddings": (False, True),
        "head_size": (0, 4),
    }
    every = list(itertools.product(*choices.values()))
    drawn = [dict(zip(choices, values, strict=True)) for values in random.Random(0).sample(every, count)]
    named = [
        {"norm_position": "post"},
        {"activation": "geglu"},
        {"activation": "polynorm"},
        {"activation": "squared_relu", "norm": "layernorm", "bias": True},
        {"kv_heads": 1},
        {"qk_norm": True},
        {"positions": "none"},
        {"rope_scaling": RopeScaling(factor=4.0, original_sequence=16), "rope_theta": 100.0},
    ]
    base = ModelConfig(vocab_size=7, hidden_size=8, layers=1, heads=4, ffn_size=6, max_sequence=6, init_std=0.5)
    return [changed(base, **options) for options in named + drawn]


@pytest.mark.parametrize("config", combinations(24))
def test_gradients_are_the_derivative(config: ModelConfig) -> None:
    """In float64 against finite differences, every parameter of every dialect at once."""
    decoder, tokens = random_decoder(config, dtype=torch.float64), random_tokens(config, 2, 5)
    parameters = tuple(decoder.parameters())

    def weighted_sum(*_: Tensor) -> Tensor:
        logits = decoder(tokens)
        return (logits * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum()

    assert torch.autograd.gradcheck(weighted_sum, parameters, fast_mode=True, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", combinations(8))
def test_no_token_sees_the_future(config: ModelConfig) -> None:
    decoder, tokens = random_decoder(config), random_tokens(config, 1, 6)
    logits = decoder(tokens)
    for place in range(1, 6):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % config.vocab_size
        moved = decoder(other)
        torch.testing.assert_close(moved[:place], logits[:place], rtol=0, atol=1e-6)
        assert error(moved[place:], logits[place:]) > 1e-3


def test_rotation_depends_on_distance_alone() -> None:
    cosine, sine = rotary_table(((0, 64),), 16, 1e4, RopeScaling(), torch.device("cpu"), torch.float64)
    query, key = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    queries, keys = rotate(query.expand(64, 1, 1, 16), cosine, sine), rotate(key.expand(64, 1, 1, 16), cosine, sine)
    scores = queries.flatten(1) @ keys.flatten(1).t()
    for distance in range(64):
        line = scores.diagonal(-distance)
        torch.testing.assert_close(line, line[:1].expand_as(line))
    assert scores[:, 0].std() > 0.1


def test_rotary_table_made_while_sampling_serves_training() -> None:
    """A table cached under inference mode could not be saved for backward."""
    config = changed(LLAMA, rope_theta=12345.0)  # a base that no other test has put in the cache
    decoder, tokens = random_decoder(config), random_tokens(config, 1, 17)
    with torch.inference_mode():
        sampled = decoder(tokens)
    logits, _, _ = run(decoder, tokens)
    assert torch.equal(logits, sampled.transpose(0, 1))


def test_grouped_heads_share_keys_and_values() -> None:
    """Query head a attends with key-value head a // (A / G): against attention written out head by head."""
    config = changed(LLAMA, positions="none", layers=1)
    decoder = random_decoder(config)
    attention = decoder.blocks[2].attention
    assert isinstance(attention, Attention)
    x = torch.randn(12, 2, config.hidden_size, generator=torch.Generator().manual_seed(0))
    query, key, value = F.linear(x, attention.qkv.weight).split([32, 16, 16], dim=-1)
    mixed = []
    for head in range(4):
        q, k, v = (
            query[..., head * 8 :][..., :8],
            key[..., head // 2 * 8 :][..., :8],
            value[..., head // 2 * 8 :][..., :8],
        )
        scores = torch.einsum("sbd,tbd->bst", q, k) / math.sqrt(8)
        weights = scores.masked_fill(torch.ones(12, 12).triu(1).bool(), -math.inf).softmax(-1)
        mixed.append(torch.einsum("bst,tbd->sbd", weights, v))
    expected = F.linear(torch.cat(mixed, -1), attention.output.weight)
    assert error(attention(x, 0), expected) < 1e-5


def test_only_pre_norm_models_end_in_a_norm() -> None:
    def kinds(config: ModelConfig) -> list[type[nn.Module]]:
        return [type(block) for block in Decoder(config, PlainLayers()).blocks]

    assert FinalNorm in kinds(LLAMA)
    assert FinalNorm not in kinds(changed(LLAMA, norm_position="post"))


def test_padded_rows_of_the_vocabulary_are_real_rows() -> None:
    config = changed(LLAMA, vocab_multiple=64)
    decoder, tokens = random_decoder(config), random_tokens(config, 2, 8)
    assert decoder(tokens).shape == (8, 2, 64)


def test_cross_entropy_is_in_float32_and_unreduced() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(5, 2, 11, generator=generator), torch.randint(11, (5, 2), generator=generator)
    losses = cross_entropy(logits.bfloat16(), targets)
    expected = (
        logits.bfloat16().double().logsumexp(-1) - logits.bfloat16().double().gather(-1, targets[..., None])[..., 0]
    )
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
