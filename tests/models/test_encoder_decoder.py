"""An encoder-decoder: its logits and gradients are those of transformers' T5, and of attention written out row by row; it is
built in slices, counted exactly, and neither half sees what it must not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from models.blocks import block_costs, block_count
from models.config import ModelConfig, ModelError, count_parameters
from models.decoder import CrossLayer, Decoder, DecoderLayer, EncoderLayer, named_parameters
from models.flops import flops_per_token
from models.layers import PlainLayers
from models.random import Clock
from tests.models.helpers import error, gradients_of, random_decoder, random_tokens, weights_of, worst_error
from tests.models.naive_attention import naive

ENCODER, DECODER = 9, 7
T5 = ModelConfig(
    vocab_size=61,
    hidden_size=32,
    layers=3,
    encoder_layers=2,
    encoder_length=ENCODER,
    heads=4,
    head_size=16,
    ffn_size=48,
    max_sequence=32,
    positions="none",
    norm_eps=1e-6,
    activation="geglu_tanh",
    tied_embeddings=False,
    init_std=0.2,
)
TOLERANCE = 1e-6  # theirs norms in float32


def theirs_of(config: ModelConfig, weights: dict[str, Tensor]) -> T5ForConditionalGeneration:
    """transformers' T5 with our weights. Its scores are not scaled, so its queries' weights are; its relative biases are 0."""
    kind = {"geglu_tanh": "gated-gelu", "swiglu": "gated-silu", "relu": "relu"}[config.activation]
    theirs = T5Config(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        d_kv=config.head_width,
        d_ff=config.ffn_width,
        num_layers=config.encoder_layers,
        num_decoder_layers=config.layers,
        num_heads=config.heads,
        dropout_rate=0.0,
        layer_norm_epsilon=config.norm_eps,
        feed_forward_proj=kind,
        tie_word_embeddings=False,
    )
    theirs.tie_word_embeddings = False  # transformers 5 sets it back
    model = T5ForConditionalGeneration(theirs).double()
    named = renamed(config, weights)
    found = model.state_dict()
    for name in found:
        if "relative_attention_bias" in name:
            found[name].zero_()
        elif "embed_tokens" in name:
            found[name].copy_(named["shared.weight"])
        else:
            found[name].copy_(named.pop(name) if name != "shared.weight" else named[name])
    assert set(named) == {"shared.weight"}, named.keys()
    model.load_state_dict(found)
    return model


def renamed(config: ModelConfig, weights: dict[str, Tensor], queries: float = 0.0) -> dict[str, Tensor]:
    """Our tensors under their names. queries: what a query's rows are multiplied by; 0 for what our scores are."""
    queries = queries or 1 / math.sqrt(config.head_width)
    size = config.heads * config.head_width
    found = {"shared.weight": weights["embedding.token.weight"], "lm_head.weight": weights["head.projection.weight"]}
    found["encoder.final_layer_norm.weight"] = weights["encoder_norm.norm.weight"]
    found["decoder.final_layer_norm.weight"] = weights["final_norm.norm.weight"]
    for ours, theirs, count in (("encoder", "encoder", config.encoder_layers), ("layers", "decoder", config.layers)):
        for index in range(count):
            layer, block = f"{ours}.{index}", f"{theirs}.block.{index}.layer"
            query, key, value = weights[f"{layer}.attention.qkv.weight"].split(size)
            attention = f"{block}.0.SelfAttention"
            found |= {f"{attention}.q.weight": queries * query, f"{attention}.k.weight": key}
            found |= {
                f"{attention}.v.weight": value,
                f"{attention}.o.weight": weights[f"{layer}.attention.output.weight"],
            }
            found[f"{block}.0.layer_norm.weight"] = weights[f"{layer}.attention_norm.weight"]
            last = 1
            if theirs == "decoder":
                last, cross = 2, f"{block}.1.EncDecAttention"
                found[f"{cross}.q.weight"] = queries * weights[f"{layer}.cross.query.weight"]
                key, value = weights[f"{layer}.cross.key_value.weight"].split(size)
                found |= {f"{cross}.k.weight": key, f"{cross}.v.weight": value}
                found[f"{cross}.o.weight"] = weights[f"{layer}.cross.output.weight"]
                found[f"{block}.1.layer_norm.weight"] = weights[f"{layer}.cross_norm.weight"]
            feed = f"{block}.{last}.DenseReluDense"
            up = weights[f"{layer}.feed_forward.up.weight"]
            parts = {"wi_0": up.chunk(2)[0], "wi_1": up.chunk(2)[1]} if config.gated else {"wi": up}
            found |= {f"{feed}.{name}.weight": part for name, part in parts.items()}
            found[f"{feed}.wo.weight"] = weights[f"{layer}.feed_forward.down.weight"]
            found[f"{block}.{last}.layer_norm.weight"] = weights[f"{layer}.ffn_norm.weight"]
    return found


def documents_of(lengths: list[int]) -> Tensor:
    """int64 [B, S]: one pair a row, whose sources have these lengths; what is left of the encoder's part is padding."""
    documents = torch.zeros(len(lengths), ENCODER + DECODER, dtype=torch.int64)
    for row, length in enumerate(lengths):
        documents[row, length:ENCODER] = -1
    return documents


def model_and_clock(
    config: ModelConfig, documents: Tensor, dtype: torch.dtype = torch.float64
) -> tuple[Decoder, Clock]:
    """A model, and its clock at a step of rows with these documents."""
    clock = Clock(0)
    decoder = random_decoder(config, dtype=dtype, clock=clock)
    clock.start(0, documents)
    return decoder, clock


@pytest.mark.parametrize("activation", ["geglu_tanh", "swiglu", "relu"])
def test_logits_and_gradients_are_those_of_transformers_t5(activation: str) -> None:
    config = replace(T5, activation=activation)
    lengths = [9, 5, 1]
    ours, _ = model_and_clock(config, documents_of(lengths))
    tokens = random_tokens(config, 3, ENCODER + DECODER)
    theirs = theirs_of(config, weights_of(ours))
    seen = torch.arange(ENCODER) < torch.tensor(lengths)[:, None]
    expected = theirs(
        input_ids=tokens[:, :ENCODER], attention_mask=seen.long(), decoder_input_ids=tokens[:, ENCODER:]
    ).logits
    logits = ours(tokens).transpose(0, 1)
    assert logits.shape == (3, DECODER, 61)
    assert error(logits, expected) < TOLERANCE
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (logits * gradient).sum().backward()
    (expected * gradient).sum().backward()
    found = renamed(config, gradients_of(ours), math.sqrt(config.head_width))
    theirs_by_name = {name: parameter.grad for name, parameter in theirs.named_parameters() if name in found}
    embeddings = theirs.encoder.embed_tokens.weight.grad, theirs.decoder.embed_tokens.weight.grad
    known = {**theirs_by_name, "shared.weight": sum(embeddings)}
    assert worst_error(found, known)[0] < TOLERANCE  # type: ignore[arg-type]


def rotated(x: Tensor, theta: float) -> Tensor:
    """[S, B, A, W] turned by position, pair (i, i + W/2) by position x theta^(-2i/W)."""
    length, _, _, width = x.shape
    found = x.clone()
    for position in range(length):
        for i in range(width // 2):
            angle = position * theta ** (-2 * i / width)
            one, other = x[position, ..., i], x[position, ..., i + width // 2]
            found[position, ..., i] = one * math.cos(angle) - other * math.sin(angle)
            found[position, ..., i + width // 2] = one * math.sin(angle) + other * math.cos(angle)
    return found


def cross_written_out(query: Tensor, key: Tensor, value: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """query [D, B, A, W], key and value [E, B, G, W] -> [D, B, A * W]; documents ours [B, D], theirs [B, E]."""
    length, batch, heads, width = query.shape
    share, found = heads // key.shape[2], torch.zeros_like(query)
    for b in range(batch):
        for head in range(heads):
            for row in range(length):
                columns = [c for c in range(key.shape[0]) if ours[b, row] == theirs[b, c]]
                scores = key[columns, b, head // share] @ query[row, b, head] / math.sqrt(width)
                found[row, b, head] = scores.softmax(0) @ value[columns, b, head // share]
    return found.flatten(2)


def slow_logits(config: ModelConfig, weights: dict[str, Tensor], tokens: Tensor, documents: Tensor) -> Tensor:
    """A pre-norm rotary encoder-decoder with SwiGLU, from its definition: tokens [B, E + D] -> logits [D, B, V]."""
    width, sizes = config.head_width, (config.heads, config.key_value_heads, config.key_value_heads)
    encoder = config.encoder_length

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * weights[f"{name}.weight"]

    def attention(x: Tensor, layer: str, causal: bool, parts: Tensor) -> Tensor:
        qkv = (x @ weights[f"{layer}.attention.qkv.weight"].t()).unflatten(-1, (-1, width))
        query, key, value = qkv.split(sizes, dim=2)
        query, key = rotated(query, config.rope_theta), rotated(key, config.rope_theta)
        mixed = naive(query, key, value, causal=causal, window=config.attention_window, documents=parts)
        return mixed @ weights[f"{layer}.attention.output.weight"].t()

    def cross(x: Tensor, source: Tensor, layer: str) -> Tensor:
        query = (x @ weights[f"{layer}.cross.query.weight"].t()).unflatten(-1, (-1, width))
        both = (source @ weights[f"{layer}.cross.key_value.weight"].t()).unflatten(-1, (-1, width))
        key, value = both.split(sizes[1:], dim=2)
        mixed = cross_written_out(query, key, value, documents[:, encoder:], documents[:, :encoder])
        return mixed @ weights[f"{layer}.cross.output.weight"].t()

    def feed(x: Tensor, layer: str) -> Tensor:
        gate, up = (x @ weights[f"{layer}.feed_forward.up.weight"].t()).chunk(2, dim=-1)
        return (gate * gate.sigmoid() * up) @ weights[f"{layer}.feed_forward.down.weight"].t()

    x = weights["embedding.token.weight"][tokens.t()]
    source, target = x[:encoder], x[encoder:]
    for index in range(config.encoder_layers):
        layer = f"encoder.{index}"
        source = source + attention(norm(source, f"{layer}.attention_norm"), layer, False, documents[:, :encoder])
        source = source + feed(norm(source, f"{layer}.ffn_norm"), layer)
    source = norm(source, "encoder_norm.norm")
    for index in range(config.layers):
        layer = f"layers.{index}"
        target = target + attention(norm(target, f"{layer}.attention_norm"), layer, True, documents[:, encoder:])
        target = target + cross(norm(target, f"{layer}.cross_norm"), source, layer)
        target = target + feed(norm(target, f"{layer}.ffn_norm"), layer)
    return norm(target, "final_norm.norm") @ weights["head.projection.weight"].t()


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"attention_window": 4, "kv_heads": 1}], ids=str)
def test_packed_pairs_with_rotary_positions_are_as_written_out(changes: dict) -> None:
    config = replace(T5, positions="rotary", activation="swiglu", **changes)
    documents = torch.tensor(
        [[0, 0, 0, 1, 1, 1, 1, -1, -1, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    )
    ours, _ = model_and_clock(config, documents)
    tokens = random_tokens(config, 2, ENCODER + DECODER)
    with torch.no_grad():
        assert error(ours(tokens), slow_logits(config, weights_of(ours), tokens, documents)) < 1e-12


DIALECTS = {
    "t5": T5,
    "grouped": replace(T5, positions="rotary", kv_heads=2, qk_norm=True, tied_embeddings=True),
    "first": replace(  # as in the first transformer
        T5,
        positions="learned",
        norm="layernorm",
        norm_position="post",
        bias=True,
        activation="relu",
        qk_norm_whole=True,
    ),
}


@pytest.mark.parametrize("name", DIALECTS)
def test_blocks_and_parameters_are_as_many_as_counted(name: str) -> None:
    config = DIALECTS[name]
    decoder = Decoder(config, PlainLayers())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == count_parameters(config)
    assert len(decoder.blocks) == block_count(config) == len(block_costs(config, 16))
    kinds = [type(block) for block in decoder.blocks if isinstance(block, DecoderLayer)]
    assert kinds == [EncoderLayer] * 2 + [CrossLayer] * 3
    names = [name for name, _ in named_parameters(iter(decoder.blocks))]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("recompute", ["block", "selective"])
def test_slices_and_recomputation_change_nothing(name: str, recompute: str) -> None:
    config = replace(DIALECTS[name], dropout=0.1, attention_dropout=0.2)
    documents, tokens = documents_of([9, 4]), random_tokens(config, 2, ENCODER + DECODER)
    found = []
    for how in ("none", recompute):
        clock = Clock(0)
        decoder = random_decoder(config, dtype=torch.float64, clock=clock, recompute=how)
        clock.start(0, documents)
        logits = decoder(tokens)
        logits.square().sum().backward()
        found.append((logits.detach(), gradients_of(decoder)))
    assert torch.equal(found[0][0], found[1][0])
    assert worst_error(found[1][1], found[0][1])[0] < 1e-12
    clock.start(0, documents)
    x = tokens
    for index, block in enumerate(decoder.blocks):
        tied = config.tied_embeddings and index == len(decoder.blocks) - 1
        x = block(x, decoder.blocks[0].token.weight) if tied else block(x)
        assert tied or index == len(decoder.blocks) - 1 or x.shape == (16, 2, 32), "one tensor flows between blocks"
    assert torch.equal(x, found[0][0])


@pytest.mark.parametrize("name", DIALECTS)
def test_a_row_sees_its_source_and_what_comes_before_it(name: str) -> None:
    """Changed logits after one token is changed: of the source all, of a target those from there on, of padding none."""
    config, tokens = DIALECTS[name], random_tokens(DIALECTS[name], 1, ENCODER + DECODER)
    decoder, clock = model_and_clock(config, documents_of([6]))

    def changed(place: int) -> list[bool]:
        seen = []
        for shift in (0, 1):
            given = tokens.clone()
            given[0, place] = (given[0, place] + shift) % config.vocab_size
            clock.start(0, documents_of([6]))
            with torch.no_grad():
                seen.append(decoder(given)[:, 0])
        return (seen[0] != seen[1]).any(-1).tolist()

    assert changed(0) == changed(5) == [True] * DECODER
    assert changed(6) == changed(8) == [False] * DECODER
    assert changed(ENCODER + 3) == [False] * 3 + [True] * 4


def test_dropout_differs_between_the_parts_and_between_attentions() -> None:
    """Equal rows of both parts are dropped unlike: every mask has a name of its own."""
    config = replace(T5, encoder_length=8, dropout=0.5, attention_dropout=0.5, positions="none")
    decoder, clock = model_and_clock(config, torch.zeros(1, 16, dtype=torch.int64))
    x = torch.ones(16, 1, 32, dtype=torch.float64)
    clock.start(0, torch.zeros(1, 16, dtype=torch.int64))
    y = decoder.blocks[1](x)
    assert not torch.equal(y[:8], y[8:])
    layer = decoder.blocks[-3]
    assert isinstance(layer, CrossLayer)
    assert int(layer.cross.spec.dropout_key) != int(layer.attention._attend.spec.dropout_key)


def test_flops_are_counted_product_by_product() -> None:
    config, length = replace(T5, activation="relu"), 16
    hidden, query, feed = 32, 64, 2 * 32 * 48
    encoder = ENCODER * (4 * hidden * query + feed) + 2 * query * ENCODER * ENCODER
    decoder = DECODER * (4 * hidden * query + feed) + query * DECODER * DECODER
    cross = DECODER * 2 * hidden * query + ENCODER * 2 * hidden * query + 2 * query * DECODER * ENCODER
    total = 6 * (2 * encoder + 3 * (decoder + cross) + DECODER * hidden * 61)
    assert flops_per_token(config, length) * length == pytest.approx(total)
    assert sum(block_costs(config, length)) == pytest.approx(total / length, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_layers": 0}, ["model.encoder_length=9", "no effect", "encoder_layers above 0"]),
        ({"encoder_length": 0}, ["model.encoder_length=0", "at least 1"]),
        ({"encoder_length": 32}, ["model.encoder_length=32", "max_sequence=32"]),
        ({"encoder_layers": -1}, ["model.encoder_layers=-1", "at least 0"]),
        ({"causal": False}, ["model.causal=false", "encoder_layers=2", "leave it out"]),
        ({"document_mask": True}, ["model.document_mask=true", "objective marks", "leave it out"]),
        ({"prefix_mask": True}, ["model.prefix_mask=true", "encoder's", "leave it out"]),
    ],
)
def test_options_that_an_encoder_decoder_cannot_have_are_refused(changes: dict, words: list[str]) -> None:
    with pytest.raises(ModelError) as refusal:
        replace(T5, **changes)
    for word in words:
        assert word in str(refusal.value)
