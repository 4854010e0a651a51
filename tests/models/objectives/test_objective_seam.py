"""What holds for every objective: shapes, and that nothing depends on batch, order or layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import keys, random
from models.objectives import Example
from models.objectives.config import MaskedConfig, MiddleConfig, ObjectiveConfig, PrefixConfig, SpanConfig
from models.objectives.units import content_length
from tests.models.objectives.made import EOD, built, pack, parts_of, rows

SPANS = SpanConfig(sentinels=16, rate=0.3)
OBJECTIVES = {
    "causal": ObjectiveConfig(),
    "prefix": ObjectiveConfig("prefix_lm"),
    "prefix by document": ObjectiveConfig("prefix_lm", unit="document", mode="<|mode_s|>"),
    "prefix by separator": ObjectiveConfig("prefix_lm", prefix_lm=PrefixConfig(split="separator")),
    "masked": ObjectiveConfig("masked_lm", masked_lm=MaskedConfig(rate=0.3)),
    "n-grams": ObjectiveConfig("masked_lm", masked_lm=MaskedConfig(ngram_shares=(0.5, 0.3, 0.2))),
    "spans": ObjectiveConfig("span_corruption", span_corruption=SPANS, mode="<|mode_r|>"),
    "spans by document": ObjectiveConfig("span_corruption", unit="document", span_corruption=SPANS),
    "middle": ObjectiveConfig("fill_in_the_middle", fill_in_the_middle=MiddleConfig(rate=0.8)),
}
PARTS = tuple(OBJECTIVES.values())
OBJECTIVES["mixture"] = ObjectiveConfig("mixture", mixture=PARTS)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(sizes=rows(), length=st.integers(8, 40), first=st.integers(0, 10**10), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_sample_gives_the_same_example_in_any_batch(
    name: str, sizes: list[list[int]], length: int, first: int, data: st.DataObject
) -> None:
    objective, made = built(OBJECTIVES[name]), pack(sizes, length, first)
    whole = objective(made.samples)
    order = np.array(data.draw(st.permutations(range(len(sizes)))))
    keep = order[: data.draw(st.integers(1, len(order)))]
    some = objective(made.samples.rows(keep))
    for ours, theirs in zip(parts_of(some), parts_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs[keep])
    again = built(OBJECTIVES[name])(made.samples)
    for ours, theirs in zip(parts_of(again), parts_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(sizes=rows(), length=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_an_example_has_the_shapes_and_types_of_the_seam(name: str, sizes: list[list[int]], length: int) -> None:
    made = pack(sizes, length)
    before = made.samples.tokens.copy()
    found: Example = built(OBJECTIVES[name])(made.samples)
    assert np.array_equal(made.samples.tokens, before), "samples are not to be changed"
    for part, kind in (
        (found.inputs, np.int64),
        (found.targets, np.int64),
        (found.weights, np.float32),
        (found.documents, np.int64),
        (found.prefix, np.bool_),
    ):
        assert part is None or (part.shape == (len(sizes), length) and part.dtype == kind)
    assert (found.weights >= 0).all()
    assert built(OBJECTIVES[name]).marks_prefix == (found.prefix is not None)
    if found.documents is not None:
        assert (np.diff(found.documents, axis=1) >= 0).all(), "numbers of documents rise along a row"


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("causal", "mixture")])
def test_another_seed_draws_anew(name: str) -> None:
    if name == "prefix by separator":
        pytest.skip("draws nothing")
    made = pack([[30, 20, 30]] * 4, 60)
    one, other = built(OBJECTIVES[name], 1)(made.samples), built(OBJECTIVES[name], 2)(made.samples)
    assert any(not np.array_equal(a, b) for a, b in zip(parts_of(one), parts_of(other), strict=True))


def test_causal_predicts_every_next_token_with_its_weight() -> None:
    made = pack([[3, 9], [4]], 8)
    found = built(ObjectiveConfig())(made.samples)
    assert np.array_equal(found.inputs, made.samples.tokens[:, :-1])
    assert np.array_equal(found.targets, made.samples.tokens[:, 1:])
    assert np.array_equal(found.weights, made.samples.weights)
    assert found.weights[1].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_padding_is_ends_of_no_weight_that_end_nothing() -> None:
    ones = np.ones(6, np.float32)
    for tokens, weights, length in (
        ([5, 5, EOD, 5, 5, 5], ones, 6),
        ([5, 5, EOD, EOD, EOD, EOD], ones * [1, 1, 1, 0, 0, 0], 3),
        ([5, 5, EOD, EOD, EOD, EOD], ones * 0, 3),  # a document that counts nothing is there all the same
        ([5, EOD, 5, 5, EOD, EOD], ones * [1, 1, 0, 0, 0, 0], 5),
        ([EOD] * 6, ones * 0, 0),
    ):
        assert content_length(np.array(tokens), weights, EOD) == length, (tokens, weights)


def test_numbers_of_numpy_and_of_torch_are_the_same() -> None:
    index = np.array([0, 1, 7, 2**40, 10**15])
    for key in (0, -5, keys.stream_key(3, "a", 7), 2**63 - 1):
        theirs = random.uniform(key, torch.from_numpy(index))
        assert np.array_equal(keys.uniform(key, index), theirs.numpy())
        assert [keys.bits_at(key, int(at)) for at in index] == keys.bits(key, index).tolist()
