"""Objectives and models that do not go together, and tokenizers that lack what an objective writes."""

from __future__ import annotations

import numpy as np
import pytest

from data.config import TokenizerConfig
from data.tokenizers import Tokenizer, make_tokenizer
from launcher.check import check_layout, with_vocabulary
from launcher.compose import build_recipe, compose_tree, groups
from launcher.config import Recipe, RecipeError
from launcher.vocabulary import joins, special_tokens, vocabulary_of
from models.objectives import Samples, build_objective


def recipe_of(*overrides: str) -> Recipe:
    return with_vocabulary(build_recipe(compose_tree(overrides)), 1024)


NEEDS = {
    "prefix_lm": ["model.prefix_mask=true"],
    "masked_lm": ["model.causal=false", "train.sample_length=0"],
    "macbert": ["model.causal=false", "train.sample_length=0"],
    "ul2": ["model.prefix_mask=true"],
    "masked_and_causal": ["model.prefix_mask=true"],
}


@pytest.mark.parametrize("name", groups()["objective"])
def test_every_recipe_is_checked_with_the_model_that_its_head_names(name: str) -> None:
    check_layout(recipe_of(f"objective={name}", *NEEDS.get(name, [])), 1)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model.causal=false"], ["model.causal=false", "objective.name=causal"]),
        (["objective=masked_lm"], ["model.causal=true", "masked_lm", "model.prefix_mask=true"]),
        (["objective=masked_lm", "model.causal=false"], ["train.sample_length=96", "set it to 0"]),
        (["objective=prefix_lm"], ["model.prefix_mask=false", "prefix_lm"]),
        (["objective=span_corruption", "model.causal=false"], ["model.causal=false", "span_corruption"]),
        (["objective=ul2"], ["model.prefix_mask=false"]),
        (["model.prefix_mask=true"], ["model.prefix_mask=true", "no effect", "objective.name=causal"]),
        (["model.prefix_mask=true", "objective=fill_in_the_middle"], ["model.prefix_mask=true", "no effect"]),
        (
            ["objective=prefix_lm", "model.prefix_mask=true", "model.document_mask=true", "model.document_end=0"],
            ["objective.unit=sample", "model.document_mask=true"],
        ),
        (
            ["objective=prefix_lm", "model.prefix_mask=true", "objective.unit=document"],
            ["objective.unit=document", "model.document_mask=true"],
        ),
        (
            ["objective=span_corruption", "objective.span_corruption.sentinels=5"],
            ["objective.span_corruption.sentinels=5", "13"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_does_not_go_together_is_refused(overrides: list[str], told: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        check_layout(recipe_of(*overrides), 1)
    assert all(part in str(caught.value) for part in told), caught.value


def test_a_prefix_mask_may_wait_for_the_phase_that_uses_it() -> None:
    phases = "phases=[{tokens: 8192}, {tokens: 8192, objective: {name: prefix_lm}}]"
    check_layout(recipe_of("model.prefix_mask=true", phases), 1)


def test_a_tokenizer_that_lacks_a_special_token_is_told_of_with_a_cure() -> None:
    recipe = recipe_of("objective=ul2", "model.prefix_mask=true")
    wanted = recipe.objective.special_tokens()
    assert len(wanted) == 103
    whole = Tokenizer("byte", special_tokens=tuple(wanted.values()))
    known = special_tokens(recipe.objective, whole, "corpora/x")
    assert sorted(known.values()) == list(range(257, 360)) and set(known) == set(wanted.values())
    for name in ("<|sentinel_7|>", "<|mode_x|>"):
        lacking = Tokenizer("byte", special_tokens=[token for token in wanted.values() if token != name])
        with pytest.raises(RecipeError) as caught:
            special_tokens(recipe.objective, lacking, "corpora/x")
        message = str(caught.value)
        assert name in message and "corpora/x" in message and "tokenizer.special_tokens" in message


def test_the_tokenizer_recipe_with_special_tokens_has_those_of_every_objective() -> None:
    for name in groups()["objective"]:
        recipe = recipe_of(f"objective={name}", "tokenizer=bpe_special", *NEEDS.get(name, []))
        assert set(recipe.objective.special_tokens().values()) <= set(recipe.tokenizer.special_tokens), name


def test_words_of_a_trained_tokenizer_go_on_where_text_has_no_border() -> None:
    text = "the unbelievable streams, of foo_bar and Überfluß\n" * 50
    tokenizer = make_tokenizer(TokenizerConfig("bpe", vocab_size=280), [text])
    inside = joins(tokenizer)
    ids = tokenizer.encode("the unbelievable streams, of Überfluß")
    begins = [True, *(~(inside[0][ids[1:]] & inside[1][ids[:-1]])).tolist()]
    words: list[list[int]] = []
    for token, begin in zip(ids.tolist(), begins, strict=True):
        if begin:
            words.append([])
        words[-1].append(token)
    told = [tokenizer.decode(np.array(word)) for word in words]
    assert [word.strip() for word in told if word.strip()] == ["the", "unbelievable", "streams", ",", "of", "Überfluß"]


def test_an_objective_is_built_of_what_the_tokenizer_tells() -> None:
    tokenizer = make_tokenizer(TokenizerConfig("byte"), [])
    recipe = recipe_of("objective.name=prefix_lm", "model.prefix_mask=true")
    objective = build_objective(recipe.objective, vocabulary_of(recipe.objective, tokenizer, "x"), 1)
    tokens = np.append(tokenizer.encode("hello world"), tokenizer.eod)[None]
    found = objective(Samples(tokens, np.zeros(1, np.int64)))
    assert found.prefix is not None and found.prefix.any() and found.weights.sum() + found.prefix.sum() == 12
