"""Whole models with kernels chosen by the factory: Triton, interpreted, computes what the reference does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.config import ModelConfig
from models.decoder import Decoder
from models.errors import ModelError
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from tests.models.helpers import changed, random_decoder, random_tokens, run, worst_error

TINY = ModelConfig(vocab_size=31, hidden_size=64, layers=1, heads=4, kv_heads=2, max_sequence=16, init_std=0.1)
DIALECTS = {
    "llama": (TINY, {"rms_norm", "gated", "rotary"}),
    "qwen": (changed(TINY, qk_norm=True, activation="geglu"), {"rms_norm", "gated", "rotary"}),
    "olmoe": (changed(TINY, qk_norm_whole=True, activation="geglu_tanh"), {"rms_norm", "gated", "rotary"}),
    "gpt": (
        changed(TINY, positions="learned", norm="layernorm", activation="squared_relu", bias=True),
        {"layer_norm", "squared_relu"},
    ),
    "powers": (changed(TINY, activation="polynorm"), {"rms_norm", "poly_norm", "rotary"}),
    "experts": (
        changed(TINY, moe=MoEConfig(experts=4, expert_size=16, aux_loss=0.0)),
        {"rms_norm", "gated", "rotary", "moe_permute"},
    ),
}
OPERATORS = {
    "rms_norm": {"row_norm", "row_norm_backward"},
    "layer_norm": {"row_norm", "row_norm_backward"},
    "gated": {"gated", "gated_backward"},
    "squared_relu": {"squared_relu", "squared_relu_backward"},
    "poly_norm": {"poly_norm", "poly_norm_backward"},
    "rotary": set(),
    "moe_permute": {"moe_permute", "moe_permute_backward", "moe_unpermute", "moe_unpermute_backward"},
}


class Called(TorchDispatchMode):
    """Names of our operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "triaxis":
            self.names.add(function._opname)
        return function(*args, **(kwargs or {}))


def decoder_by(kernels: str, config: ModelConfig) -> Decoder:
    """The same weights whatever the kernels."""
    decoder = Decoder(config, PlainLayers(kernels=kernels))
    decoder.load_state_dict(random_decoder(config).state_dict())
    return decoder


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_model_by_triton_is_the_one_by_torch(dialect: str) -> None:
    config, kernels = DIALECTS[dialect]
    tokens = random_tokens(config, 2, 16)
    with Called() as called:
        logits, loss, gradients = run(decoder_by("triton", config), tokens)
    expected = set().union(*(OPERATORS[name] for name in kernels))
    assert {name for name in called.names if not name.startswith("rotary")} == expected
    assert any(name.startswith("rotary") for name in called.names) == ("rotary" in kernels)
    plain_logits, plain_loss, plain = run(decoder_by("reference", config), tokens)
    torch.testing.assert_close(logits, plain_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss, plain_loss)
    assert worst_error(gradients, plain)[0] < 1e-5, worst_error(gradients, plain)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_on_cpu_auto_is_the_reference(dialect: str) -> None:
    config, _ = DIALECTS[dialect]
    tokens = random_tokens(config, 2, 16)
    with Called() as called:
        logits, _, gradients = run(decoder_by("auto", config), tokens)
    plain_logits, _, plain = run(decoder_by("reference", config), tokens)
    assert not called.names
    assert torch.equal(logits, plain_logits)
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)


def test_a_compiled_model_by_triton_is_one_graph() -> None:
    config, _ = DIALECTS["llama"]
    decoder, tokens = decoder_by("triton", config), random_tokens(config, 2, 16)
    _, loss, gradients = run(decoder, tokens)
    torch.compiler.reset()
    for block in decoder.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    _, again, compiled = run(decoder, tokens)
    torch.testing.assert_close(again, loss)
    assert worst_error(compiled, gradients)[0] < 1e-5


def test_experts_have_no_weights_for_powers() -> None:
    with pytest.raises(ModelError, match=r"model.activation=polynorm: has weights of its own.*moe.experts=4"):
        changed(DIALECTS["experts"][0], activation="polynorm")
