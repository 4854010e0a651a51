"""Conversions give the same logits where the mathematics says so, and models built by hand elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig, ModelError, count_parameters
from models.decoder import Decoder, initialise_blocks, named_parameters
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from models.surgery import FILLS, Weights, average, experts_of, resize_vocabulary, take_layers, upcycle
from tests.models.helpers import GPT, LLAMA, changed, random_decoder, random_tokens, weights_of

DEEP = {
    "llama": changed(LLAMA, layers=4, vocab_multiple=4),
    "gpt": changed(GPT, layers=4, vocab_multiple=4),
    "post": changed(GPT, layers=4, norm_position="post", tied_embeddings=False),
}


def source_of(config: ModelConfig, seed: int = 1) -> tuple[Weights, Decoder]:
    decoder = random_decoder(config, seed=seed)
    return Weights(config, weights_of(decoder).__getitem__), decoder


def build(weights: Weights) -> Decoder:
    """The model that a conversion gives; every tensor must have the shape that it is declared with."""
    decoder = Decoder(weights.model, PlainLayers())
    for name, parameter in named_parameters(iter(decoder.blocks)):
        tensor = weights.read(name)
        assert tuple(tensor.shape) == weights.shapes()[name] == tuple(parameter.shape), name
        parameter.data.copy_(tensor)
    return decoder.eval()


@torch.no_grad()
def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.eval()(tokens)


@pytest.mark.parametrize("dialect", DEEP)
@pytest.mark.parametrize("order", [(0, 1), (2,), (0, 1, 2, 1, 2, 3), (3, 2, 1, 0)], ids=str)
def test_layers_are_taken_as_if_by_hand(dialect: str, order: tuple[int, ...]) -> None:
    config = DEEP[dialect]
    source, decoder = source_of(config)
    tokens = random_tokens(config, 2, 24)
    found = logits(build(take_layers(source, order)), tokens)
    blocks = list(decoder.eval().blocks)
    by_hand = blocks[:2] + [blocks[2 + index] for index in order] + blocks[2 + config.layers :]
    with torch.no_grad():
        x = tokens
        for block in by_hand[:-1]:
            x = block(x)
        expected = by_hand[-1](x, decoder.blocks[0].token.weight) if config.tied_embeddings else by_hand[-1](x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dialect", ["llama", "gpt"])
@pytest.mark.parametrize("order", [(0, 0, 1, 1, 2, 2, 3, 3), (0, 1, 2, 1, 2, 3), (0, 1, 2, 3, 3, 3)], ids=str)
def test_repeats_as_identities_keep_every_logit(dialect: str, order: tuple[int, ...]) -> None:
    config = DEEP[dialect]
    source, decoder = source_of(config)
    tokens = random_tokens(config, 2, 24)
    grown = take_layers(source, order, identity=True)
    assert grown.model.layers == len(order)
    assert torch.equal(logits(build(grown), tokens), logits(decoder, tokens))
    plain = logits(build(take_layers(source, order)), tokens)
    assert not torch.allclose(plain, logits(decoder, tokens)), "plain copies are another function"


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("dialect", DEEP)
@pytest.mark.parametrize(("size", "multiple"), [(61, 4), (61, 1), (61, 128), (62, 4), (64, 1), (100, 8)])
def test_old_tokens_keep_every_logit(dialect: str, fill: str, size: int, multiple: int) -> None:
    config = DEEP[dialect]
    source, decoder = source_of(config)
    tokens = random_tokens(config, 2, 24)
    wide = resize_vocabulary(source, size, multiple, fill, seed=5)
    assert (wide.model.vocab_size, wide.model.padded_vocab % multiple) == (size, 0)
    assert torch.equal(logits(build(wide), tokens)[..., :61], logits(decoder, tokens)[..., :61])
    for name in {"embedding.token.weight", "head.projection.weight"} & wide.shapes().keys():
        before, after = source.read(name), wide.read(name)
        kept = slice(size, min(len(before), len(after)))
        assert torch.equal(after[kept], before[kept]), "what pads both"
        new = after[61:size]
        if fill == "mean":
            assert torch.equal(new, before[:61].double().mean(0).float().expand_as(new))
        elif fill == "zero":
            assert not new.any()
        else:
            fresh = Decoder(wide.model, PlainLayers())
            initialise_blocks(iter(fresh.blocks), 5)
            assert torch.equal(new, dict(named_parameters(iter(fresh.blocks)))[name][61:size])


def test_a_mean_row_raises_the_loss_by_no_more_than_its_share() -> None:
    config = DEEP["llama"]
    source, _ = source_of(config)
    tokens = random_tokens(config, 2, 24)
    bare = logits(build(resize_vocabulary(source, 61, 1, "mean")), tokens)
    wide = logits(build(resize_vocabulary(source, 80, 1, "mean")), tokens)
    rise = wide.logsumexp(-1) - bare.logsumexp(-1)
    assert 0 < float(rise.max()) <= torch.tensor(80 / 61).log() + 1e-6


def test_averages() -> None:
    config = DEEP["llama"]
    sources = [source_of(config, seed)[0] for seed in (1, 2, 3)]
    same = average([sources[0]] * 5, [1.0, 0.3, 2.0, 1 / 3, 0.1])
    mean = average(sources, [1, 1, 1])
    tilted = average(sources, [0.5, 0.2, 0.3])
    for name in mean.shapes():
        one, two, three = (source.read(name) for source in sources)
        assert torch.equal(same.read(name), one), "of equal ones the same bits"
        assert torch.equal(mean.read(name), torch.stack((one, two, three)).double().mean(0).float())
        expected = 0.5 * one.double() + 0.2 * two.double() + 0.3 * three.double()
        assert torch.allclose(tilted.read(name), expected.float(), rtol=2.0**-23, atol=0)


@pytest.mark.parametrize("dialect", DEEP)
@pytest.mark.parametrize(
    ("experts", "top_k", "parts"),
    [(4, 2, 1), (8, 1, 1), (4, 4, 1), (8, 2, 2), (8, 4, 2), (12, 4, 4), (4, 4, 4), (16, 16, 16)],
)
def test_a_mixture_of_copies_is_the_dense_model(dialect: str, experts: int, top_k: int, parts: int) -> None:
    config = DEEP[dialect]
    source, decoder = source_of(config)
    tokens = random_tokens(config, 2, 24)
    mixture = upcycle(source, experts, top_k, parts, seed=4)
    assert (mixture.model.moe.experts, mixture.model.moe.top_k) == (experts, top_k)
    assert mixture.model.expert_width * parts == config.ffn_width
    dense = logits(decoder, tokens)
    found = logits(build(mixture), tokens)
    assert float((found - dense).abs().max()) <= 2e-6 * float(dense.abs().max())
    if experts == parts and not config.bias:
        router = config.layers * experts * config.hidden_size
        assert count_parameters(mixture.model) == count_parameters(config) + router, "a division adds the router alone"


def test_choices_differ_between_tokens_and_take_whole_copies() -> None:
    source, _ = source_of(DEEP["llama"])
    mixture = upcycle(source, 12, 4, 4, seed=4)
    rows = mixture.read("layers.1.feed_forward.router.weight").view(3, 4, -1)
    assert torch.equal(rows, rows[:, :1].expand_as(rows)) and not torch.equal(rows[0], rows[1])
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(2))
    chosen = (x @ rows.flatten(0, 1).t()).softmax(-1).topk(4).indices // 4
    assert torch.equal(chosen, chosen[:, :1].expand_as(chosen)), "a token's four experts are one copy"
    assert len(chosen[:, 0].unique()) == 3, "and every copy is some token's"


@pytest.mark.parametrize("gated", [False, True])
def test_each_expert_is_its_slice(gated: bool) -> None:
    """Written out: expert c * G + g has features g F / G ... (g + 1) F / G, gate before up, down transposed."""
    hidden, width, parts, copies = 3, 8, 2, 3
    narrow = width // parts
    up, down = torch.randn((2 if gated else 1) * width, hidden), torch.randn(hidden, width)
    ups = experts_of("up.weight", up, parts, gated=gated, copies=copies).view(parts * copies, -1, hidden)
    downs = experts_of("down.weight", down, parts, gated=gated, copies=copies).view(parts * copies, narrow, hidden)
    biases = experts_of("up.bias", up[:, 0], parts, gated=gated, copies=copies).view(parts * copies, -1)
    for expert in range(parts * copies):
        part = slice(expert % parts * narrow, (expert % parts + 1) * narrow)
        rows = [up[:width][part], up[width:][part]] if gated else [up[part]]
        assert torch.equal(ups[expert], torch.cat(rows))
        assert torch.equal(downs[expert], down[:, part].t())
        assert torch.equal(biases[expert], torch.cat(rows)[:, 0])
    shared = experts_of("down.bias", down[:, 0], parts, gated=gated, copies=copies).view(copies, parts, hidden)
    assert torch.equal(shared.sum(1), down[:, 0].expand(copies, -1)), "the parts of a copy add the bias up once"


def test_mixtures_keep_layers_vocabularies_and_averages() -> None:
    """Conversions of a model that has experts: the routers and what they remember go with their layers."""
    source, _ = source_of(DEEP["llama"])
    mixture = upcycle(source, 4, 2, seed=4)
    tokens = random_tokens(DEEP["llama"], 2, 24)
    expected = logits(build(mixture), tokens)
    grown = take_layers(mixture, (0, 1, 1, 2, 3), identity=True)
    assert torch.equal(logits(build(grown), tokens), expected)
    assert "layers.4.feed_forward.router.frequency" in grown.shapes()
    assert torch.equal(grown.read("layers.4.feed_forward.router.frequency"), torch.full((4,), 0.25))
    wide = resize_vocabulary(mixture, 70, 1, "mean")
    assert torch.equal(logits(build(wide), tokens)[..., :61], expected[..., :61])
    same = average([mixture, mixture], [1, 2])
    assert all(torch.equal(same.read(name), mixture.read(name)) for name in mixture.shapes())


def test_conversions_compose_and_read_one_tensor_at_a_time() -> None:
    config = DEEP["llama"]
    weights = weights_of(random_decoder(config))
    asked: list[str] = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return weights[name]

    found = resize_vocabulary(take_layers(Weights(config, read), (0, 3)), 70, 1, "mean")
    assert asked == []
    tensor = found.read("layers.1.attention.qkv.weight")
    assert asked == ["layers.3.attention.qkv.weight"] and torch.equal(tensor, weights[asked[0]])
    assert (found.model.layers, found.model.vocab_size) == (2, 70)


def every_second(source: Weights) -> Weights:
    """The model with experts in layers 1 and 3 alone; never read."""
    return Weights(replace(source.model, moe=MoEConfig(experts=4, expert_size=48, every=2)), source.read)


def test_what_cannot_be_is_named() -> None:
    source, _ = source_of(DEEP["llama"])
    post, _ = source_of(DEEP["post"])
    wider = source_of(replace(DEEP["llama"], ffn_size=64))[0]
    for attempt, told in (
        (lambda: take_layers(source, (0, 4)), "layer 4: there are layers 0 to 3"),
        (lambda: take_layers(source, ()), "layer list"),
        (lambda: take_layers(post, (0, 0), identity=True), "norm_position=post"),
        (lambda: take_layers(source, (0, 1), identity=True), "no layer occurs twice"),
        (lambda: resize_vocabulary(source, 60, 1, "mean"), "--vocab=60: the model has 61"),
        (lambda: upcycle(source, 6, 3, 4), "--experts=6: must be a multiple of --granularity=4"),
        (lambda: upcycle(source, 8, 3, 4), "--top-k=3"),
        (lambda: upcycle(source, 5, 5, 5), "feed-forward width=48"),
        (lambda: upcycle(upcycle(source, 4, 2), 4, 2), "has 4 experts already"),
        (
            lambda: take_layers(every_second(source), (0, 1, 1)),
            "layer 2 of the new model would be layer 1, which has experts",
        ),
        (lambda: average([source, wider], [1, 1]), "ffn_size is 48 here and 64 there"),
        (lambda: average([source, source], [1]), "must be 2 numbers"),
        (lambda: average([source, source], [1, -1]), "sum above 0"),
    ):
        with pytest.raises(ModelError, match=told):
            attempt()
