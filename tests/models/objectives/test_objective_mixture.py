"""Mixtures of objectives by sample, and weights from metadata."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.errors import ModelError
from models.objectives import Columns
from models.objectives.config import MaskedConfig, ObjectiveConfig, SpanConfig, WeightConfig
from models.objectives.mixture import Mixture
from tests.models.objectives.made import built, pack, parts_of

PARTS = (
    ObjectiveConfig(weight=1),
    ObjectiveConfig("prefix_lm", weight=2),
    ObjectiveConfig("masked_lm", weight=1),
    ObjectiveConfig("span_corruption", weight=4, span_corruption=SpanConfig(sentinels=16)),
)


def test_samples_are_given_out_by_weight_and_each_is_its_objectives() -> None:
    made = pack([[10, 20, 4]] * 4000, 32, first=10**7)
    mixture = built(ObjectiveConfig("mixture", mixture=PARTS))
    assert isinstance(mixture, Mixture)
    choice = mixture.choice(made.samples.indices)
    for number, part in enumerate(PARTS):
        assert abs((choice == number).mean() - part.weight / 8) < 4 * np.sqrt(0.25 / 4000)
    found = mixture(made.samples)
    for number, objective in enumerate(mixture.objectives):
        here = np.flatnonzero(choice == number)[:50]
        alone = objective(made.samples.rows(here))
        for name in ("inputs", "targets", "weights"):
            assert np.array_equal(getattr(found, name)[here], getattr(alone, name))
        assert found.prefix is not None
        assert np.array_equal(found.prefix[here], np.zeros((len(here), 32)) if alone.prefix is None else alone.prefix)
    assert found.documents is not None
    causal = np.flatnonzero(choice == 0)
    assert (found.documents[causal] == [0] * 11 + [1] * 21).all(), (
        "documents of those that mark none are told apart by ends"
    )


def test_two_parts_alike_draw_apart() -> None:
    parts = (ObjectiveConfig("masked_lm"), ObjectiveConfig("masked_lm"))
    mixture = built(ObjectiveConfig("mixture", mixture=parts))
    made = pack([[30]], 32)
    assert isinstance(mixture, Mixture)
    one, other = (objective(made.samples) for objective in mixture.objectives)
    assert not np.array_equal(one.weights, other.weights)


@pytest.mark.parametrize("name", ["causal", "prefix_lm", "masked_lm"])
def test_a_table_weighs_each_documents_tokens(name: str) -> None:
    made = pack([[5, 6, 20], [9, 30]], 20)
    of = np.zeros((2, 21), np.int64)
    of[0, 6:13], of[0, 13:], of[1, 10:] = 1, 2, 0
    columns = Columns(of, {"source": np.array(["wiki", "web", None], object), "other": np.zeros(3)})
    config = WeightConfig("source", {"wiki": 2.0, "web": 0.5}, default=0.25)
    options = {"masked_lm": MaskedConfig(rate=0.5)} if name == "masked_lm" else {}
    plain = built(ObjectiveConfig(name, **options))(made.samples)  # type: ignore[arg-type]
    found = built(ObjectiveConfig(name, weights=config, **options))(replace(made.samples, columns=columns))  # type: ignore[arg-type]
    weight = np.array([2.0, 0.5, 0.25])[of]
    expected = plain.weights * (weight[:, :-1] if name == "masked_lm" else weight[:, 1:])
    expected[:, 0] = found.weights[:, 0]  # of a row's first token the stream tells no weight
    assert np.allclose(found.weights, expected)
    assert np.array_equal(found.inputs, plain.inputs)


def test_numbers_of_a_column_are_weights_between_their_bounds() -> None:
    made = pack([[5, 6, 20]], 20)
    of = np.repeat([[0, 1, 2]], [6, 7, 8], axis=1)
    columns = Columns(of, {"quality": np.array([0.3, 7.0, np.nan])})
    config = WeightConfig("quality", low=0.5, high=3.0, default=0.125)
    found = built(ObjectiveConfig(weights=config))(replace(made.samples, columns=columns))
    assert found.weights[0].tolist() == [0.5] * 5 + [3.0] * 7 + [0.125] * 8
    by_sample = built(ObjectiveConfig(weights=replace(config, by="sample")))(replace(made.samples, columns=columns))
    mean = (6 * 0.5 + 7 * 3.0 + 8 * 0.125) / 21
    assert np.allclose(by_sample.weights, mean)


def test_padding_stays_without_weight() -> None:
    made = pack([[5]], 20)
    columns = Columns(np.zeros((1, 21), np.int64), {"quality": np.array([2.0])})
    for by in ("token", "sample"):
        config = WeightConfig("quality", high=2.0, by=by)
        found = built(ObjectiveConfig(weights=config))(replace(made.samples, columns=columns))
        assert found.weights[0].tolist() == [2.0] * 5 + [0.0] * 15


def test_a_column_that_is_not_there_is_named() -> None:
    made = pack([[5]], 20)
    for columns in (None, Columns(np.zeros((1, 21), np.int64), {})):
        with pytest.raises(ModelError, match="objective.weights.column=quality"):
            built(ObjectiveConfig(weights=WeightConfig("quality")))(replace(made.samples, columns=columns))


def test_an_example_of_a_mixture_always_has_the_same_parts() -> None:
    """A rank whose rows are all causal must hand its model the same kinds of masks as the others."""
    mixture = built(ObjectiveConfig("mixture", mixture=PARTS))
    made = pack([[10]] * 40, 16)
    assert all(len(parts_of(mixture(made.samples.rows(np.array([row]))))) == 5 for row in range(40))
