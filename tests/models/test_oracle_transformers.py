"""Logits, loss and all gradients equal Hugging Face transformers' models with the same weights, to 1e-5 in float32.

Theirs run their eager attention, so the two sides share no attention code. Errors are relative to the largest element
of each tensor: stricter than an absolute tolerance where gradients are small.
"""

from __future__ import annotations

import pytest
import torch

from models.config import ModelConfig, ModelError, RopeScaling, count_parameters
from models.huggingface import family, from_huggingface, logical_shapes, to_huggingface
from models.huggingface_config import from_config, to_config
from tests.models.helpers import (
    DEEPSEEK,
    GPT,
    LLAMA,
    MIXTRAL,
    OLMOE,
    QWEN2_MOE,
    changed,
    error,
    random_decoder,
    random_tokens,
    run,
    weights_of,
    worst_error,
)
from tests.models.transformers_models import as_in_files, in_memory, transformers_model

TOLERANCE = 1e-5
LENGTH = 96

# with base 1000 and heads of 8 the wavelengths are 6, 35, 199 and 1117 tokens: one is kept (under 64 / 4), one lies
# between the limits, two are stretched (over 64 / 1); the test's sequence is longer than the original 64
STRETCHED = RopeScaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_sequence=64)
DIALECTS = {
    "gpt2": GPT,
    "gpt2-erf": changed(GPT, activation="gelu"),
    "gpt2-squared-relu": changed(GPT, activation="squared_relu"),
    "gpt2-untied": changed(GPT, tied_embeddings=False),
    "opt": changed(GPT, activation="relu"),
    "opt-post-norm": changed(GPT, activation="relu", norm_position="post"),
    "llama": changed(LLAMA, kv_heads=0),
    "llama-grouped": LLAMA,
    "llama-multi-query-tied": changed(LLAMA, kv_heads=1, tied_embeddings=True),
    "llama-wide-heads": changed(LLAMA, head_size=16),
    "llama-stretched": changed(LLAMA, rope_theta=1000.0, rope_scaling=STRETCHED),
    "llama-geglu-biases": changed(LLAMA, activation="geglu", bias=True),
    "llama-geglu-tanh": changed(LLAMA, activation="geglu_tanh"),
    "mistral": changed(LLAMA, attention_window=17),
    "qwen2": changed(LLAMA, qkv_bias=True, norm_eps=1e-6, rope_theta=1e6),
    "qwen3": changed(LLAMA, qk_norm=True, norm_eps=1e-6),
    "mixtral": MIXTRAL,
    "olmoe": OLMOE,
    "qwen2-moe": QWEN2_MOE,
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_logits_loss_and_gradients_equal_transformers(dialect: str) -> None:
    config = DIALECTS[dialect]
    ours = random_decoder(config)
    theirs = transformers_model(config)
    report = theirs.load_state_dict(in_memory(config, to_huggingface(config, weights_of(ours))), strict=False)
    assert not report.unexpected_keys
    assert report.missing_keys == (["lm_head.weight"] if config.tied_embeddings else [])
    tokens = random_tokens(config, 3, LENGTH)

    logits, loss, gradients = run(ours, tokens)
    result = theirs(tokens, labels=tokens)
    result.loss.backward()
    their_gradients = as_in_files(config, {name: parameter.grad for name, parameter in theirs.named_parameters()})

    errors = {
        "logits": error(logits, result.logits.detach()),
        "loss": error(loss, result.loss.detach()),
        "gradients": worst_error(gradients, from_huggingface(config, their_gradients)),
    }
    print(dialect, errors)
    assert errors["logits"] <= TOLERANCE
    assert errors["loss"] <= TOLERANCE
    assert errors["gradients"][0] <= TOLERANCE, errors["gradients"]


@pytest.mark.parametrize("dialect", [*DIALECTS, "deepseek"])
def test_there_and_back_is_the_identity(dialect: str) -> None:
    config = changed(DIALECTS.get(dialect, DEEPSEEK), vocab_multiple=32)
    weights = weights_of(random_decoder(config))
    for name in ("embedding.token.weight", "head.projection.weight"):
        if name in weights:
            weights[name][config.vocab_size :] = 0  # padding does not travel
    theirs = to_huggingface(config, weights)
    table = next(tensor for name, tensor in theirs.items() if "embed_tokens" in name or "wte" in name)
    assert table.shape[0] == config.vocab_size < config.padded_vocab
    back = from_huggingface(config, theirs)
    assert back.keys() == weights.keys() == logical_shapes(config).keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_published_gpt2_files_are_accepted_as_they_are() -> None:
    """OpenAI's files on the hub have no `transformer.` prefix and carry the causal masks."""
    weights = weights_of(random_decoder(GPT))
    theirs = {name.removeprefix("transformer."): value for name, value in to_huggingface(GPT, weights).items()}
    theirs |= {"h.0.attn.bias": torch.ones(1, 1, 96, 96), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    theirs["lm_head.weight"] = theirs["wte.weight"]
    back = from_huggingface(GPT, theirs)
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_weights_that_do_not_fit_are_named() -> None:
    theirs = to_huggingface(LLAMA, weights_of(random_decoder(LLAMA)))
    lacking = {name: value for name, value in theirs.items() if name != "model.norm.weight"}
    with pytest.raises(ModelError, match=r"missing \['model.norm.weight'\]"):
        from_huggingface(LLAMA, lacking)
    with pytest.raises(ModelError, match=r"unknown \['model.layers.9.mlp.up_proj.bias'\]"):
        from_huggingface(LLAMA, theirs | {"model.layers.9.mlp.up_proj.bias": torch.zeros(1)})
    cut = {name: value[:, :16] if "mlp.up" in name or "mlp.gate" in name else value for name, value in theirs.items()}
    with pytest.raises(ModelError, match=r"gate_proj.*shape \(96, 16\) where the recipe says \(96, 32\)"):
        from_huggingface(LLAMA, cut)


@pytest.mark.parametrize(
    "config",
    [
        changed(GPT, positions="rotary"),
        changed(GPT, kv_heads=2),
        changed(GPT, norm_position="post"),
        changed(LLAMA, norm_position="post"),
        changed(LLAMA, qk_norm=True, qkv_bias=True),
        changed(LLAMA, activation="gelu"),
        changed(LLAMA, qk_norm_whole=True),
        changed(MIXTRAL, activation="geglu"),
        changed(MIXTRAL, moe=changed(MIXTRAL.moe, scoring="sigmoid")),
        changed(LLAMA, causal=False),
        changed(LLAMA, attention_window=8, bias=True),
        changed(GPT, attention_window=8),
    ],
)
def test_models_without_a_family_are_refused(config: ModelConfig) -> None:
    with pytest.raises(ModelError, match="no Hugging Face family"):
        family(config)


@pytest.mark.parametrize("config", [MIXTRAL, OLMOE, QWEN2_MOE, DEEPSEEK], ids=lambda config: config.name)
def test_mixtures_are_read_back_from_the_config_that_they_write(config: ModelConfig) -> None:
    back = from_config(to_config(config, "float32"), config.name)
    ffn = config.ffn_size if config.name in ("qwen2_moe", "deepseek") else config.expert_width  # else no layer has it
    plain = {"init_std": back.init_std, "scaled_residual_init": back.scaled_residual_init, "head_size": 8}
    wanted = changed(config, ffn_size=ffn, **plain)
    if config.name in ("mixtral", "olmoe"):
        wanted = changed(wanted, moe=changed(config.moe, expert_size=0))
    assert back == wanted
    assert count_parameters(back) == count_parameters(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_expert_intermediate_size": 24}, "shared_expert_intermediate_size=24: only multiples"),
        ({"mlp_only_layers": [1]}, r"mlp_only_layers=\[1\]"),
    ],
)
def test_mixtures_that_we_cannot_hold_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_config(to_config(QWEN2_MOE, "float32") | options, "other")
