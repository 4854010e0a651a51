from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataError
from data.mixture import Mixture, smooth
from data.open import names_of, open_stream
from data.stream_config import DataConfig, SourceConfig
from tests.data.synthetic import write_corpus

WEIGHTS = st.lists(st.floats(0.01, 10), min_size=1, max_size=7)


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 50), st.integers(0, 10**10))
def test_counts_and_places_agree_at_any_index(weights, seed, start):
    mixture = Mixture(len(weights), seed)
    mixture.add(weights)
    units = np.arange(start, start + 200)
    source, index = mixture.place(units)
    before, after = mixture.counts(start), mixture.counts(start + 200)
    for number in range(len(weights)):
        own = index[source == number]
        assert own.tolist() == list(range(before[number], after[number]))
    assert sum(before) == start


@settings(deadline=None)
@given(WEIGHTS, st.integers(0, 50))
def test_every_prefix_is_near_its_weights(weights, seed):
    mixture = Mixture(len(weights), seed)
    mixture.add(weights)
    source, _ = mixture.place(np.arange(3000))
    for number, weight in enumerate(weights):
        wanted = np.arange(1, 3001) * weight / sum(weights)
        assert np.abs(np.cumsum(source == number) - wanted).max() <= len(weights)  # the tree is no deeper


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.one_of(st.none(), st.integers(0, 300))), min_size=2, max_size=5),
    st.integers(0, 9),
)
def test_a_spent_source_leaves_its_weight_to_the_others(parts, seed):
    weights, caps = [weight for weight, _ in parts], [cap for _, cap in parts]
    mixture = Mixture(len(parts), seed)
    spent = mixture.add(weights, 1000, caps)
    assert mixture.units == (1000 if None in caps else min(1000, sum(caps)))
    source, index = mixture.place(np.arange(mixture.units))
    counts = np.bincount(source, minlength=len(parts))
    for number, cap in enumerate(caps):
        assert sorted(index[source == number].tolist()) == list(range(counts[number]))
        if cap is not None:
            assert counts[number] <= cap
            assert counts[number] == cap or number not in spent
    free = [number for number, cap in enumerate(caps) if cap is None]
    if len(free) > 1:
        shares = counts[free] / counts[free].sum()
        wanted = np.array(weights)[free] / np.array(weights)[free].sum()
        assert np.abs(shares - wanted).max() < 0.05
    with pytest.raises(DataError, match="spent after"):
        mixture.place(np.array([mixture.units]))


def test_smooth_weights_follow_the_line():
    mixture = Mixture(2, 0)
    for units, weights in smooth([(0, [1, 0]), (1000, [0, 1])], 1.0):
        mixture.add(weights, units)
    for units in (100, 500, 900, 1000):
        wanted = units * units / 2000
        assert abs(mixture.counts(units)[1] - wanted) < 8
    assert mixture.counts(3000)[1] - mixture.counts(1000)[1] == 2000


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("mixture")
    lengths = {"small": [[40] * 10], "large": [[100] * 40, [300] * 10]}
    kinds = {"small": ["a"], "large": ["a", "b"]}
    return {
        name: str(write_corpus(place / name, shards, name=name, kind=kinds[name])) for name, shards in lengths.items()
    }


def drawn(config: DataConfig, tokens: int = 16000, length: int = 16) -> dict[str, int]:
    stream = open_stream(config, 1, length=length, tokens=tokens)
    counts = np.bincount(stream.rows(np.arange(0, tokens, length), length).sources, minlength=len(stream.sources))
    assert [count * length for count in counts] == stream.consumed(tokens)
    return dict(zip(names_of(config, stream), (counts * length).tolist(), strict=True))


def sources(corpora: dict[str, str], **each: dict) -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(corpora[name], **options) for name, options in each.items())


def test_what_is_drawn_is_what_was_asked_for(corpora):
    assert drawn(DataConfig(sources=sources(corpora, small={"weight": 3}, large={"weight": 1}))) == {
        "small": 12000,
        "large": 4000,
    }
    natural = drawn(DataConfig(sources=sources(corpora, small={}, large={})))
    assert natural["small"] == pytest.approx(16000 * 400 / 7400, abs=32)
    even = drawn(DataConfig(sources=sources(corpora, small={}, large={}), temperature=1e9))
    assert even["small"] == pytest.approx(8000, abs=32)
    moving = {"weights": ((0, 1), (16000, 0))}, {"weights": ((0, 0), (16000, 1))}
    assert drawn(DataConfig(sources=sources(corpora, small=moving[0], large=moving[1])))["small"] == pytest.approx(
        8000, abs=200
    )
    budgets = drawn(DataConfig(sources=sources(corpora, small={"tokens": 1600}, large={"tokens": 14400})))
    assert budgets == {"small": 1600, "large": 14400}


def test_filters_and_long_documents(corpora):
    filtered = DataConfig(sources=sources(corpora, large={"where": 'kind == "b"', "weight": 1}))
    stream = open_stream(filtered, 1, length=16, tokens=100)
    assert stream.sources[0].documents == 25
    longer = DataConfig(path=corpora["large"], long_tokens=200, long_share=0.75)
    found = drawn(longer)
    assert found[next(name for name in found if ">=" in name)] == 12000


def test_sources_that_are_spent(corpora):
    capped = sources(corpora, small={"weight": 1, "epochs": 2}, large={"weight": 1})
    with pytest.raises(DataError, match=r"is spent \(epochs = 2\) after 800 tokens, before a phase of 16,000"):
        drawn(DataConfig(sources=capped))
    assert drawn(DataConfig(sources=capped, when_spent="renormalise")) == {"small": 800, "large": 15200}
    both = sources(corpora, small={"weight": 1, "epochs": 2}, large={"weight": 1, "epochs": 1})
    with pytest.raises(DataError, match="until all are spent"):
        drawn(DataConfig(sources=both, when_spent="renormalise"))
    with pytest.raises(DataError, match="no document of"):
        open_stream(DataConfig(path=corpora["small"], where='kind == "z"'), 1, length=16, tokens=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ({"weight": 1}, {})}, "has no weight and others have"),
        ({"sources": ({"weight": 1, "tokens": 3}, {})}, "has weight and tokens; keep one"),
        ({"sources": ({}, {})}, "two are the same"),
        ({"sources": ({"weights": ((5, 1),)},)}, "begins at 0 tokens"),
        ({"path": "p", "temperature": 2.0}, "no effect"),
        ({"path": "p", "window": 3}, "data.window = 3 has no effect"),
        ({"path": "p", "long_share": 0.5}, "one has no effect without the other"),
        ({"path": "p", "skip": ((3, 1),)}, "ascending ranges"),
        ({"path": "p", "packing": "loose"}, "must be one of cut, best_fit, document"),
        ({"path": "p", "when_spent": "renormalise"}, "no effect without data.sources"),
    ],
)
def test_mistakes_are_refused(options, message):
    def make() -> DataConfig:
        parts = tuple(SourceConfig("p", **part) for part in options.get("sources", ()))
        return DataConfig(**{**options, "sources": parts})

    with pytest.raises(DataError, match=message):
        make()
