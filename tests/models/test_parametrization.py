"""Parametrizations against the papers' tables, their base against `standard`, and against the size of real gradients.

mup: arXiv 2203.03466, tables 3 (routers) and 8; completep: arXiv 2505.01618, table 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from launcher.config import OptimizerConfig
from launcher.optim.build import optimizer_factory
from models.config import ModelConfig, ModelError
from models.decoder import Decoder, named_parameters
from models.folding import fold
from models.huggingface import family
from models.layers import PlainLayers
from models.linear import cross_entropy
from models.moe.config import MoEConfig
from models.parameters import declaration
from models.parametrization import ParametrizationConfig, Scales, Scaling, role_of, scaling_of
from models.random import Clock
from models.surgery import Weights, take_layers
from parallel.engines.base import set_learning_rate
from tests.models.helpers import GPT, LLAMA, MIXTRAL, QWEN2_MOE, random_decoder, random_tokens, weights_of

WIDE, DEEP = 4.0, 8.0  # over the base's, in the tables below
NAMES = {
    "embedding": "embedding.token.weight",
    "head": "head.projection.weight",
    "matrix": "layers.0.attention.qkv.weight",
    "router": "layers.0.feed_forward.router.weight",
    "gain": "layers.0.ffn_norm.weight",
    "last gain": "final_norm.norm.weight",
}
# What the papers' tables say for 4 times the width, and 8 times the depth: rate, decay, epsilon. 8 ** -0.5 is 0.3536.
TABLES: dict[tuple[str, str, float], dict[str, tuple[float, float, float]]] = {
    ("mup", "adamw", 1.0): {
        "embedding": (1, 1, 1 / 4),
        "head": (1, 1, 1 / 4),
        "matrix": (1 / 4, 4, 1 / 4),
        "router": (1 / 4, 4, 1),
        "gain": (1, 1, 1 / 4),
        "last gain": (1, 1, 1 / 4),
    },
    ("completep", "adamw", 1.0): {
        "embedding": (1, 1, 1 / 4),
        "head": (1, 1, 1 / 4),
        "matrix": (1 / 4, 4, 1 / 32),
        "router": (1 / 4, 4, 1 / 8),
        "gain": (1, 1, 1 / 32),
        "last gain": (1, 1, 1 / 4),
    },
    ("completep", "adamw", 0.5): {
        "embedding": (1, 1, 1 / 4),
        "head": (1, 1, 1 / 4),
        "matrix": (0.35355339 / 4, 4, 0.35355339 / 4),
        "router": (0.35355339 / 4, 4, 0.35355339),
        "gain": (0.35355339, 1, 0.35355339 / 4),
        "last gain": (1, 1, 1 / 4),
    },
    ("mup", "sgd", 1.0): {
        "embedding": (4, 1 / 4, 1),
        "head": (4, 1 / 4, 1),
        "matrix": (1, 1, 1),
        "router": (1 / 4, 4, 1),
        "gain": (4, 1 / 4, 1),
        "last gain": (4, 1 / 4, 1),
    },
}


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_scalings_are_those_of_the_tables(table: tuple[str, str, float]) -> None:
    kind, optimizer, exponent = table
    scales = Scales(WIDE, DEEP if kind == "completep" else 1.0, exponent)
    for part, expected in TABLES[table].items():
        dims = 1 if "gain" in part else 2
        found = scaling_of(scales, optimizer, NAMES[part], dims)
        assert (found.rate, found.decay, found.epsilon) == pytest.approx(expected), part


def test_nothing_is_scaled_at_the_base() -> None:
    for optimizer in ("adamw", "sgd"):
        for part, name in NAMES.items():
            assert scaling_of(Scales(), optimizer, name, 1 if "gain" in part else 2) == Scaling(), part


def followed(model: ModelConfig, kind: str = "mup", **options: float) -> ModelConfig:
    """The model with a quarter of its width (and half its depth) as base, in heads of the same size."""
    depth = {"base_depth": model.layers // 2} if kind == "completep" else {}
    given = ParametrizationConfig(kind, model.hidden_size // 4, model.head_width, **depth, **options)  # type: ignore[arg-type]
    return replace(model, parametrization=given)


# Every kind of parameter there is: initial weights over those of `standard`, and what the optimizer takes it for.
EXPECTED = {
    "embedding": 1.0,  # embeddings, positions, heads
    "vector": 1.0,
    "matrix": 0.5,
    "output": 0.25,  # routers and gates
}


@pytest.mark.parametrize(
    "model", [GPT, replace(QWEN2_MOE, scaled_residual_init=True), LLAMA], ids=lambda model: model.name
)
def test_initial_weights_are_those_of_the_tables(model: ModelConfig) -> None:
    plain, ours = (parameters_of(one) for one in (model, followed(model)))
    seen = set()
    for name, parameter in ours.items():
        found, before = declaration(parameter), declaration(plain[name])
        role = role_of(name, len(found.shape))
        seen.add(role)
        assert found.std == pytest.approx(before.std * EXPECTED[role]), name
        assert found.constant == before.constant
    assert seen >= {"embedding", "vector", "matrix"} | ({"output"} if model.moe.experts else set())


def parameters_of(model: ModelConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(named_parameters(iter(Decoder(model, PlainLayers()).blocks)))


def test_residual_init_keeps_to_the_depth_of_the_base() -> None:
    """Branches are divided by the depth; the projections into them would else shrink with it a second time."""
    model = replace(LLAMA, scaled_residual_init=True, layers=2)
    deep = replace(followed(model, "completep"), layers=32)
    down = declaration(parameters_of(deep)["layers.31.feed_forward.down.weight"])
    assert down.std == pytest.approx(model.init_std / 2 / math.sqrt(2 * 1))  # a quarter of the width, one layer
    assert deep.scales.branch == 1 / 32


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_the_base_is_standard_bit_for_bit(kind: str) -> None:
    for model in (replace(GPT, scaled_residual_init=True), replace(QWEN2_MOE, scaled_residual_init=True)):
        depth = {"base_depth": model.layers} if kind == "completep" else {}
        given = ParametrizationConfig(kind, model.hidden_size, model.head_width, **depth)
        tokens = random_tokens(model, 2, 9)
        plain, ours = random_decoder(model), random_decoder(replace(model, parametrization=given))
        for (name, one), other in zip(weights_of(plain).items(), weights_of(ours).values(), strict=True):
            assert torch.equal(one, other), name
        assert torch.equal(plain(tokens), ours(tokens))


def gradient_sizes(model: ModelConfig) -> dict[str, float]:
    """Root mean square of the gradients of each kind of parameter after some steps: a router's are small by chance at first,
    as long as what experts say has nothing to do with the loss."""
    decoder, tokens = random_decoder(model), random_tokens(model, 4, 33)
    tokens[:, 1::2] = (tokens[:, 0:-1:2] * 3 + 1) % model.vocab_size
    named = list(named_parameters(iter(decoder.blocks)))
    optimizer = optimizer_factory(OptimizerConfig(), model=model)(named)
    set_learning_rate(optimizer, 3e-3)
    for step in range(9):
        if step:
            optimizer.step()
        optimizer.zero_grad()
        cross_entropy(decoder(tokens[:, :-1]), tokens[:, 1:].t()).mean().backward()
    found: dict[str, list[float]] = {}
    for name, parameter in named:
        assert parameter.grad is not None
        inside = "layer" if name.startswith("layers.") else "outside"
        found.setdefault(f"{inside} {role_of(name, parameter.dim())}", []).append(float(parameter.grad.square().mean()))
    return {kind: math.sqrt(sum(squares) / len(squares)) for kind, squares in found.items()}


SMALL = replace(
    MIXTRAL,
    hidden_size=64,
    heads=4,
    head_size=16,
    init_std=0.1,
    moe=MoEConfig(experts=4, top_k=2, expert_size=64, shared_experts=1, aux_loss=0.0),
    parametrization=ParametrizationConfig("completep", 64, 16, 2, embedding_multiplier=10.0),
)
WIDER = replace(SMALL, hidden_size=256, heads=16, kv_heads=8, moe=replace(SMALL.moe, expert_size=256))


@pytest.mark.parametrize("large", [WIDER, replace(SMALL, layers=8)], ids=["wider", "deeper"])
def test_epsilon_follows_the_size_of_gradients(large: ModelConfig) -> None:
    """A second witness for the column: gradients of a model four times as wide or deep, over those of its base."""
    before, after = gradient_sizes(SMALL), gradient_sizes(large)
    names = {"layer matrix": NAMES["matrix"], "layer output": NAMES["router"], "layer vector": NAMES["gain"]}
    names |= {"outside embedding": NAMES["embedding"], "outside vector": NAMES["last gain"]}
    assert before.keys() == after.keys() == names.keys()
    for kind, name in names.items():
        expected = scaling_of(large.scales, "adamw", name, 1 if "vector" in kind else 2).epsilon
        assert 0.6 < after[kind] / before[kind] / expected < 1.7, kind


FOLDED = {
    "gpt": followed(GPT, "completep", embedding_multiplier=1.5, output_multiplier=3.0),
    "llama": followed(LLAMA, "completep", depth_exponent=0.5, embedding_multiplier=2.0),
    "qwen2_moe": followed(QWEN2_MOE, "completep", output_multiplier=0.7),
    "normed": followed(replace(LLAMA, qk_norm=True, tied_embeddings=True)),
    "post": followed(replace(GPT, norm_position="post", tied_embeddings=False), embedding_multiplier=1.5),
    "encoder": followed(replace(LLAMA, encoder_layers=2, encoder_length=4), output_multiplier=2.0),
}


def logits(model: ModelConfig, read: Callable[[str], Tensor]) -> Tensor:
    """Of a model with these tensors."""
    clock = Clock(0)
    decoder = Decoder(model, PlainLayers(clock=clock))
    for name, parameter in named_parameters(iter(decoder.blocks)):
        parameter.data.copy_(read(name))
    clock.start(0, torch.zeros(2, 9, dtype=torch.int64))
    with torch.no_grad():
        return decoder.eval()(random_tokens(model, 2, 9))


@pytest.mark.parametrize("name", FOLDED)
def test_folded_weights_give_the_same_logits(name: str) -> None:
    given = replace(FOLDED[name].parametrization, base_head_size=FOLDED[name].head_width // 2)
    model = replace(FOLDED[name], parametrization=given)
    assert model.scales.query == math.sqrt(0.5)
    before = weights_of(random_decoder(model))
    folded = fold(Weights(model, before.__getitem__))
    assert folded.model.parametrization == ParametrizationConfig()
    expected = logits(model, before.__getitem__)
    assert torch.allclose(
        logits(folded.model, folded.read), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )
    unfolded = logits(folded.model, before.__getitem__)
    assert float((unfolded - expected).abs().max()) > 0.1 * float(expected.abs().max()), "nothing was multiplied"


def test_powers_of_two_fold_without_a_bit_lost() -> None:
    model = followed(replace(LLAMA, layers=4), "completep", embedding_multiplier=2.0)
    before = weights_of(random_decoder(model))
    folded = fold(Weights(model, before.__getitem__))
    assert torch.equal(logits(folded.model, folded.read), logits(model, before.__getitem__))


def test_a_tied_head_without_a_norm_before_it_cannot_be_folded() -> None:
    model = followed(replace(GPT, norm_position="post"))
    with pytest.raises(ModelError, match="tied_embeddings=true"):
        fold(Weights(model, weights_of(random_decoder(model)).__getitem__))


def test_families_of_others_refuse_multipliers() -> None:
    with pytest.raises(ModelError, match="kind=mup: no Hugging Face family"):
        family(followed(LLAMA))
    assert family(replace(LLAMA, parametrization=ParametrizationConfig("mup", 32, 8))) == "llama"


REFUSED = {
    "kind=muup: choose": {"kind": "muup"},
    "base_width=64: has no effect with kind=standard": {"base_width": 64},
    "embedding_multiplier=2.0: has no effect": {"embedding_multiplier": 2.0},
    "base_width=0: model.parametrization.kind=mup needs": {"kind": "mup", "base_head_size": 8},
    "base_head_size=0: model.parametrization.kind=mup needs": {"kind": "mup", "base_width": 8},
    "base_depth=2: has no effect with kind=mup": {"kind": "mup", "base_width": 8, "base_head_size": 8, "base_depth": 2},
    "depth_exponent=0.5: has no effect with kind=mup": {
        "kind": "mup",
        "base_width": 8,
        "base_head_size": 8,
        "depth_exponent": 0.5,
    },
    "base_depth=0: model.parametrization.kind=completep needs": {
        "kind": "completep",
        "base_width": 8,
        "base_head_size": 8,
    },
    "depth_exponent=1.5: must be from 0.5 to 1": {
        "kind": "completep",
        "base_width": 8,
        "base_head_size": 8,
        "base_depth": 2,
        "depth_exponent": 1.5,
    },
    "output_multiplier=0.0: must be above 0": {
        "kind": "mup",
        "base_width": 8,
        "base_head_size": 8,
        "output_multiplier": 0.0,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message: str) -> None:
    with pytest.raises(ModelError, match=message.replace(".", r"\.")):
        ParametrizationConfig(**REFUSED[message])  # type: ignore[arg-type]


def test_depth_is_refused_where_nobody_has_derived_it() -> None:
    given = ParametrizationConfig("completep", 8, 8, 2)
    with pytest.raises(ModelError, match="norm_position=post"):
        replace(GPT, norm_position="post", parametrization=given)
    with pytest.raises(ModelError, match="encoder_layers=2"):
        replace(LLAMA, encoder_layers=2, encoder_length=4, parametrization=given)
    model = followed(LLAMA, "completep")
    weights = Weights(model, weights_of(random_decoder(model)).__getitem__)
    with pytest.raises(ModelError, match="divides what layers add"):
        take_layers(weights, [0])
    assert take_layers(weights, [1, 0]).model == model
