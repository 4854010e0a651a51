"""Masked LM against its definition: what may be chosen, how much, and what stands in its place."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.objectives import Example, Samples, build_objective
from models.objectives.config import MaskedConfig, ObjectiveConfig
from tests.models.objectives.made import EOD, ORDINARY, VOCABULARY, Made, built, pack, rows

MASK = 40
RATES = st.floats(0.05, 0.6)
SHARES = st.sampled_from([(1.0,), (0.4, 0.3, 0.2, 0.1), (0.0, 0.0, 1.0)])
# ids divisible by 3 go on inside the word that an id before them left open: 2 out of 3 do
INSIDE = np.stack([np.arange(64) % 3 == 0, np.arange(64) % 3 != 1])


def masked(config: MaskedConfig, made: Made, seed: int = 3) -> Example:
    vocabulary = replace(VOCABULARY, joins=INSIDE)
    return build_objective(ObjectiveConfig("masked_lm", masked_lm=config), vocabulary, seed)(made.samples)


def words_of(row: list[int]) -> list[list[int]]:
    """Places of the words of a row, one after another, which neither an end nor another special token is in."""
    found: list[list[int]] = []
    for place, token in enumerate(row):
        if token not in ORDINARY:
            continue
        goes_on = found and found[-1][-1] == place - 1 and token % 3 == 0 and row[place - 1] % 3 != 1
        if goes_on:
            found[-1].append(place)
        else:
            found.append([place])
    return found


@given(sizes=rows(), length=st.integers(8, 60), rate=RATES, shares=SHARES, whole=st.booleans())
@settings(max_examples=150, deadline=None)
def test_what_is_hidden_is_asked_for_and_nothing_else(
    sizes: list[list[int]], length: int, rate: float, shares: tuple[float, ...], whole: bool
) -> None:
    made = pack(sizes, length)
    found = masked(MaskedConfig(rate=rate, ngram_shares=shares, whole_word=whole), made)
    assert np.array_equal(found.targets, made.samples.tokens[:, :-1])
    asked = found.weights > 0
    assert np.array_equal(found.inputs[~asked], found.targets[~asked]), "what is not asked for is as it was"
    assert np.isin(found.targets[asked], ORDINARY).all(), "ends and padding are never asked for"
    assert np.isin(found.inputs[asked], [MASK, *ORDINARY]).all()
    for row, line in enumerate(found.targets.tolist()):
        words = words_of(line)
        units = words if whole else [[place] for word in words for place in word]
        chosen = set(np.flatnonzero(asked[row]).tolist())
        assert all(len(chosen & set(unit)) in (0, len(unit)) for unit in units), "a word is chosen whole or not at all"
        most = max((len(unit) for unit in units), default=0) * len(shares)
        assert abs(len(chosen) - rate * sum(map(len, units))) <= most


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("shares", [(1.0,), (0.4, 0.3, 0.2, 0.1)])
def test_rates_are_exact_on_average(whole: bool, shares: tuple[float, ...]) -> None:
    made = pack([[20, 30, 11]] * 3000, 64)
    found = masked(MaskedConfig(rate=0.217, ngram_shares=shares, whole_word=whole), made)
    counts = (found.weights > 0).sum(1)
    assert abs(counts.mean() - 0.217 * 61) < 4 * max(counts.std(), 0.5) / np.sqrt(3000)
    by_place = (found.weights > 0).mean(0)[: 20 - 4]
    if shares == (1.0,) and not whole:
        assert np.abs(by_place - 0.217).max() < 5 * np.sqrt(0.217 * 0.783 / 3000), "each token as likely"


def test_eight_in_ten_are_masked_and_one_is_another_token() -> None:
    made = pack([[60]] * 3000, 60)
    found = masked(MaskedConfig(rate=0.4), made)
    asked = found.weights > 0
    kept = found.inputs[asked] == found.targets[asked]
    hidden = found.inputs[asked] == MASK
    total = asked.sum()
    for share, seen in ((0.8, hidden), (0.1 + 0.1 / 39, kept), (0.1 - 0.1 / 39, ~kept & ~hidden)):
        assert abs(seen.mean() - share) < 4 * np.sqrt(share * (1 - share) / total)
    others = Counter(found.inputs[asked][~hidden & ~kept].tolist())
    assert set(others) == set(ORDINARY), "any ordinary token may stand there, and no special one"


def test_the_lengths_of_runs_are_the_shares() -> None:
    """At a rate so low that hardly any two runs touch, in rows so long that the last one, which must fit, hardly counts."""
    made = pack([[1500]] * 500, 1500)
    found = masked(MaskedConfig(rate=0.03, ngram_shares=(0.5, 0.25, 0.25)), made)
    runs = Counter[int]()
    for row in found.weights > 0:
        places = np.flatnonzero(row)
        runs.update(len(run) for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(run))
    total = sum(runs.values())
    for length, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        assert abs(runs[length] / total - share) < 0.04, runs


def test_the_rate_is_a_function_of_the_position() -> None:
    config = MaskedConfig(rate=0.4, final_rate=0.1, rate_tokens=1000)
    made = pack([[100]] * 4, 100)
    told = replace(made.samples, position=np.array([0, 500, 1000, 10**9]))
    objective = built(ObjectiveConfig("masked_lm", masked_lm=config))
    counts = (objective(told).weights > 0).sum(1)
    assert np.abs(counts - [40, 25, 10, 10]).max() <= 1
    plain = Samples(made.samples.tokens, np.array([0, 5, 10, 15]), made.samples.weights)  # 100 tokens each
    assert np.abs((objective(plain).weights > 0).sum(1) - [40, 25, 10, 10]).max() <= 1


def test_all_of_a_row_is_its_prefix() -> None:
    found = built(ObjectiveConfig("masked_lm"))(pack([[5, 5]], 20).samples)
    assert found.prefix is not None and found.prefix.all() and found.documents is None
    assert not np.isin(found.inputs[0, 12:], [MASK]).any() and (found.inputs[0, 12:] == EOD).all()
