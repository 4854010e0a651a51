"""Options of objectives: what cannot be, or has no effect, is refused by name; what is needed of a tokenizer is told."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import ModelError
from models.objectives.config import (
    MaskedConfig,
    MiddleConfig,
    ObjectiveConfig,
    PrefixConfig,
    SpanConfig,
    TokenNames,
    WeightConfig,
)


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        (ObjectiveConfig, {"name": "casual"}, ["objective.name=casual", "causal"]),
        (ObjectiveConfig, {"name": "mixture"}, ["objective.mixture", "0 entries"]),
        (ObjectiveConfig, {"mixture": (ObjectiveConfig(),)}, ["objective.mixture", "objective.name=mixture"]),
        (ObjectiveConfig, {"masked_lm": MaskedConfig(rate=0.3)}, ["objective.masked_lm", "objective.name=causal"]),
        (ObjectiveConfig, {"unit": "document"}, ["objective.unit=document", "prefix_lm"]),
        (ObjectiveConfig, {"mode": "[R]"}, ["objective.mode=[R]", "span_corruption"]),
        (ObjectiveConfig, {"weight": 0.0}, ["objective.weight=0.0", "above 0"]),
        (
            ObjectiveConfig,
            {"name": "mixture", "mixture": (ObjectiveConfig("mixture", mixture=(ObjectiveConfig(),)),)},
            ["objective.mixture[0].name=mixture"],
        ),
        (
            ObjectiveConfig,
            {"name": "mixture", "mixture": (ObjectiveConfig(), ObjectiveConfig(tokens=TokenNames(mask="[M]")))},
            ["objective.mixture[1].tokens", "objective.tokens"],
        ),
        (PrefixConfig, {"split": "half"}, ["objective.prefix_lm.split=half", "fraction"]),
        (PrefixConfig, {"fraction": 0.3}, ["objective.prefix_lm.fraction=0.3", "split=uniform"]),
        (PrefixConfig, {"split": "fraction", "fraction": 1.0}, ["fraction=1.0", "below 1"]),
        (MaskedConfig, {"rate": 0.0}, ["objective.masked_lm.rate=0.0", "above 0"]),
        (MaskedConfig, {"final_rate": 0.2}, ["final_rate=0.2", "rate_tokens=0"]),
        (MaskedConfig, {"rate_tokens": 5}, ["rate_tokens=5"]),
        (MaskedConfig, {"mask_share": 0.8, "random_share": 0.3}, ["random_share=0.3", "mask_share=0.8"]),
        (MaskedConfig, {"ngram_shares": (0.5, 0.4)}, ["ngram_shares=[0.5, 0.4]", "add up to 1"]),
        (MaskedConfig, {"ngram_shares": ()}, ["ngram_shares=[]"]),
        (SpanConfig, {"rate": 1.0}, ["objective.span_corruption.rate=1.0"]),
        (SpanConfig, {"mean_length": 0.5}, ["mean_length=0.5", "at least 1"]),
        (SpanConfig, {"sentinels": 0}, ["sentinels=0"]),
        (MiddleConfig, {"rate": 1.5}, ["objective.fill_in_the_middle.rate=1.5"]),
        (MiddleConfig, {"level": "word"}, ["level=word", "character"]),
        (TokenNames, {"sentinel": "<extra>"}, ["objective.tokens.sentinel=<extra>", "{}"]),
        (WeightConfig, {"default": 0.5}, ["objective.weights.default=0.5", "column is empty"]),
        (WeightConfig, {"column": "a", "table": {"x": 1.0}, "high": 2.0}, ["high=2.0", "table"]),
        (WeightConfig, {"column": "a", "low": 2.0}, ["low=2.0", "above low"]),
        (WeightConfig, {"column": "a", "by": "row"}, ["by=row", "sample"]),
    ],
)
def test_mistakes_name_option_and_cure(kind: Any, options: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        kind(**options)
    assert all(part in str(caught.value) for part in told), caught.value


def test_an_objective_tells_the_special_tokens_that_it_writes() -> None:
    names = TokenNames(sentinel="<extra_id_{}>", mask="[MASK]")
    spans = SpanConfig(sentinels=2, separator=True)
    for config, wanted in (
        (ObjectiveConfig(), []),
        (ObjectiveConfig("prefix_lm"), []),
        (ObjectiveConfig("prefix_lm", prefix_lm=PrefixConfig("separator"), mode="[S]"), ["<|sep|>", "[S]"]),
        (ObjectiveConfig("masked_lm", tokens=names), ["[MASK]"]),
        (ObjectiveConfig("masked_lm", masked_lm=MaskedConfig(mask_share=0.0)), []),
        (
            ObjectiveConfig("span_corruption", span_corruption=spans, tokens=names),
            ["<extra_id_0>", "<extra_id_1>", "<|sep|>"],
        ),
        (ObjectiveConfig("fill_in_the_middle"), ["<|fim_middle|>", "<|fim_prefix|>", "<|fim_suffix|>"]),
        (
            ObjectiveConfig("mixture", mixture=(ObjectiveConfig("masked_lm"), ObjectiveConfig()), tokens=names),
            ["[MASK]"],
        ),
    ):
        assert sorted(config.special_tokens().values()) == sorted(wanted)
