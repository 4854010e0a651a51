"""Dropout is a function of (seed, name, sample, position, feature): the same however a batch or a sequence is cut, in
recomputation, and different where it should be."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from torch import Tensor

from models.attention import Attention
from models.config import ModelConfig
from models.core import Spans
from models.dropout import Dropout
from models.feedforward import FeedForward
from models.layers import PlainLayers
from models.linear import cross_entropy
from models.random import Clock
from tests.models.helpers import (
    GPT,
    LLAMA,
    changed,
    error,
    gradients_of,
    random_decoder,
    random_tokens,
    run,
    worst_error,
)

DROPPING = changed(LLAMA, dropout=0.1, attention_dropout=0.2)
SEED = 9


class SecondHalf(PlainLayers):
    """The layers of a rank that holds the second half of each sequence."""

    def spans(self, length: int) -> Spans:
        return ((length, 2 * length),)

    def uncut(self, length: int) -> int:
        return 2 * length


def mask(name: str = "x", *, samples: int = 8, first: int = 0, length: int = 16, seed: int = SEED) -> Tensor:
    """What dropout leaves of ones [S, B, H]."""
    layers = PlainLayers(clock=Clock(seed))
    return Dropout(layers, 0.3, name)(torch.ones(length, samples, 24), first, length)


def test_mask_does_not_depend_on_how_the_batch_is_cut() -> None:
    whole = mask()
    for cut in (1, 3, 8):
        parts = [mask(samples=min(cut, 8 - first), first=first) for first in range(0, 8, cut)]
        assert torch.equal(torch.cat(parts, dim=1), whole)


def test_mask_does_not_depend_on_how_the_sequence_is_cut() -> None:
    layers = SecondHalf(clock=Clock(SEED))
    half = Dropout(layers, 0.3, "x")(torch.ones(8, 8, 24), 0, layers.uncut(8))
    assert torch.equal(half, mask()[8:])


class LastHeads(PlainLayers):
    """The layers of a rank that holds the second half of the heads."""

    def share(self, count: int) -> int:
        return count // 2

    def feature_start(self, count: int) -> int:
        return count


def test_attention_mask_does_not_depend_on_how_the_heads_are_cut() -> None:
    whole = Attention(DROPPING, PlainLayers(clock=Clock(SEED)), "layers.0", recompute_core=False)
    half = Attention(DROPPING, LastHeads(clock=Clock(SEED)), "layers.0", recompute_core=False)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(12, 3, heads, 8, generator=generator) for heads in (4, 2, 2))
    expected = whole._attend(query, key, value, 7, True)[..., 16:]
    torch.testing.assert_close(half._attend(query[:, :, 2:], key[:, :, 1:], value[:, :, 1:], 7, True), expected)


def test_masks_differ_by_name_seed_and_sample() -> None:
    masks = [mask(), mask("y"), mask(seed=SEED + 1), mask(first=8), mask()[:, [7, *range(7)]]]
    for a, b in itertools.combinations(masks, 2):
        agreement = ((a != 0) == (b != 0)).float().mean().item()
        assert agreement == pytest.approx(0.7**2 + 0.3**2, abs=0.04)  # 3072 elements: 4 standard errors


def test_backward_uses_the_forward_mask() -> None:
    layers = PlainLayers(clock=Clock(SEED))
    x = torch.randn(16, 8, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = Dropout(layers, 0.3, "x")(x, 0, 16)
    out.sum().backward()
    assert torch.equal(x.grad, mask())
    assert torch.equal(out.detach(), torch.where(mask() != 0, x.detach() * (1 / 0.7), 0))


def accumulate(config: ModelConfig, recompute: str, cut: int, first_sample: int = 40) -> dict[str, Tensor]:
    """Gradients of one step over 4 sequences in micro-batches of `cut`."""
    clock = Clock(SEED)
    decoder = random_decoder(config, recompute=recompute, clock=clock)
    tokens = random_tokens(config, 4, 24)
    clock.start(first_sample)
    for part in tokens.split(cut):
        cross_entropy(decoder(part)[:-1], part.t()[1:].contiguous()).sum().backward()
    return gradients_of(decoder)


@pytest.mark.parametrize("recompute", ["block", "selective"])
@pytest.mark.parametrize("config", [DROPPING, changed(GPT, dropout=0.1, attention_dropout=0.1)], ids=lambda c: c.name)
def test_recomputation_gives_the_same_gradients_bitwise(config: ModelConfig, recompute: str) -> None:
    expected = accumulate(config, "none", 2)
    found = accumulate(config, recompute, 2)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(("recompute", "cores", "ffns"), [("none", 1, 1), ("selective", 2, 1), ("block", 2, 2)])
def test_recomputation_runs_again_what_it_says(
    recompute: str, cores: int, ffns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selective repeats the attention core in the backward pass, block the whole layer; neither when evaluating."""
    calls: Counter[str] = Counter()
    core, feed_forward = Attention._core, FeedForward.forward
    monkeypatch.setattr(Attention, "_core", lambda *args: calls.update(["core"]) or core(*args))
    monkeypatch.setattr(FeedForward, "forward", lambda *args: calls.update(["ffn"]) or feed_forward(*args))
    decoder = random_decoder(LLAMA, recompute=recompute)
    run(decoder, random_tokens(LLAMA, 2, 8))
    assert calls == {"core": cores * LLAMA.layers, "ffn": ffns * LLAMA.layers}
    calls.clear()
    run(decoder.eval(), random_tokens(LLAMA, 2, 8))
    assert calls == {"core": LLAMA.layers, "ffn": LLAMA.layers}


def test_gradients_do_not_depend_on_micro_batches() -> None:
    """Every dropout of the model, attention weights included, follows the sample."""
    expected = accumulate(DROPPING, "none", 4)
    for cut in (1, 2):
        assert worst_error(accumulate(DROPPING, "none", cut), expected)[0] < 1e-5
    other_samples = accumulate(DROPPING, "none", 4, first_sample=44)
    assert worst_error(other_samples, expected)[0] > 0.1


def test_every_dropout_has_its_own_mask() -> None:
    """Embedding, attention output and feed-forward output of each layer."""
    config = changed(DROPPING, attention_dropout=0.0)
    decoder = random_decoder(config)
    found = [module for module in decoder.modules() if isinstance(module, Dropout)]
    assert len(found) == 1 + 2 * config.layers
    masks = [module(torch.ones(16, 4, 32), 0, 16) for module in found]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


def test_evaluation_drops_nothing() -> None:
    tokens = random_tokens(DROPPING, 2, 24)
    still = random_decoder(changed(DROPPING, dropout=0.0, attention_dropout=0.0))
    dropping = random_decoder(DROPPING)
    assert error(dropping(tokens), still(tokens)) > 0.05
    assert torch.equal(dropping.eval()(tokens), still.eval()(tokens))


@pytest.mark.parametrize("config", [LLAMA, GPT, changed(LLAMA, kv_heads=1)], ids=lambda c: f"{c.name}-{c.kv_heads}")
def test_unfused_attention_equals_the_fused_core(config: ModelConfig) -> None:
    """At a probability at which nothing is dropped, the core written out is scaled_dot_product_attention."""
    tokens = random_tokens(config, 2, 64)
    fused = run(random_decoder(config), tokens)
    unfused = run(random_decoder(changed(config, attention_dropout=1e-14)), tokens)
    assert error(unfused[0], fused[0]) < 1e-5
    assert worst_error(unfused[2], fused[2])[0] < 1e-5


def test_attention_dropout_keeps_the_expectation() -> None:
    """The mean of many masked attentions is the attention without dropout."""
    config = changed(LLAMA, layers=1, attention_dropout=0.3)
    attention = random_decoder(config).blocks[2].attention
    x = torch.randn(8, 1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        draws = torch.stack([attention(x, sample) for sample in range(1500)])
        expected = attention.eval()(x, 0)
    standard_error = draws.std(0) / 1500**0.5
    assert ((draws.mean(0) - expected).abs() < 5 * standard_error + 1e-6).all()
    assert (draws.std(0) > 1e-3).any()
