"""Prefix LM and span corruption against their definitions, in a decoder and for an encoder-decoder."""

from __future__ import annotations

import itertools
from collections import Counter

import hypothesis
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from models.objectives import Example
from models.objectives.config import ObjectiveConfig, PrefixConfig, SpanConfig
from tests.models.objectives.made import EOD, SENTINELS, built, pack, rows

UNITS = st.sampled_from(["sample", "document"])


def texts_of(row: list[tuple[list[int], bool]], unit: str) -> list[tuple[list[int], bool]]:
    """What is parted as one: each text, or all of a row with the ends between."""
    if unit == "document":
        return row
    whole = list(itertools.chain.from_iterable([*text, EOD] for text, _ in row))
    return [(whole[:-1], row[-1][1])]


def read_decoder(example: Example, row: int) -> list[tuple[list[int], list[int]]]:
    """(given, asked) of each unit of a row, as its prefix and documents part them."""
    assert example.documents is not None and example.prefix is not None
    line = [*example.inputs[row].tolist(), int(example.targets[row, -1])]
    assert line[1:] == example.targets[row].tolist()
    counts = [0.0, *example.weights[row].tolist()]
    marks, numbers = example.prefix[row].tolist(), example.documents[row].tolist()
    marks.append(False)
    numbers.append(numbers[-1])
    found = []
    for number in sorted(set(numbers)):
        places = [at for at, other in enumerate(numbers) if other == number]
        given = [line[at] for at in places if marks[at]]
        asked = [line[at] for at in places if counts[at] > 0]
        assert not any(marks[at] and counts[at] > 0 for at in places), "what is given is not asked for"
        if asked:
            assert places[: len(given)] == [at for at in places if marks[at]], "a prefix is at the beginning"
            found.append((given, asked))
    return found


def read_both(example: Example, row: int, cut: int) -> list[tuple[list[int], list[int]]]:
    """The same of an encoder-decoder's row; its decoder reads an end and then its targets one later."""
    assert example.documents is not None and example.prefix is None
    inputs, targets, counts = (part[row].tolist() for part in (example.inputs, example.targets, example.weights))
    numbers = example.documents[row].tolist()
    assert not any(counts[:cut])
    found = []
    for number in sorted(set(numbers) - {-1}):
        given = [token for token, other in zip(inputs[:cut], numbers[:cut], strict=True) if other == number]
        places = [at for at in range(cut, len(inputs)) if numbers[at] == number and counts[at] > 0]
        asked = [targets[at] for at in places]
        assert [inputs[at] for at in places] == [EOD, *asked[:-1]]
        found.append((given, asked))
    assert set(numbers[cut:]) <= set(numbers[:cut]), "every row of cross-attention must see something"
    return found


@hypothesis.given(sizes=rows(), length=st.integers(8, 60), unit=UNITS, mode=st.booleans(), encoder=st.booleans())
@settings(max_examples=120, deadline=None)
def test_prefix_and_rest_are_the_text(
    sizes: list[list[int]], length: int, unit: str, mode: bool, encoder: bool
) -> None:
    made, cut = pack(sizes, length), length // 2 if encoder else 0
    name = "<|mode_s|>" if mode else ""
    found = built(ObjectiveConfig("prefix_lm", unit=unit, mode=name), encoder=cut)(made.samples)
    for row, packed in enumerate(made.texts):
        pairs = read_both(found, row, cut) if encoder else read_decoder(found, row)
        texts = texts_of(packed, unit)
        assert len(pairs) <= len(texts)
        for number, ((given, asked), (text, ended)) in enumerate(zip(pairs, texts, strict=False)):
            if mode:
                assert given.pop(0) == 47
            told = given + asked
            last = number == len(pairs) - 1
            if last and told != [*text, *[EOD] * ended]:
                assert told == text[: len(told)], "what does not fit is cut at its end, and not ended"
            else:
                assert told == [*text, *[EOD] * ended]
            assert given and asked


def test_without_mode_nothing_of_a_row_is_lost() -> None:
    made = pack([[30, 20, 30], [70], [5, 6]], 60)
    for unit in ("sample", "document"):
        found = built(ObjectiveConfig("prefix_lm", unit=unit))(made.samples)
        assert np.array_equal(found.inputs, made.samples.tokens[:, :-1])
        assert np.array_equal(found.targets, made.samples.tokens[:, 1:])


def test_split_points_are_where_the_law_says() -> None:
    made = pack([[11]] * 6000, 11)
    for law in (PrefixConfig(), PrefixConfig("fraction", 0.75)):
        found = built(ObjectiveConfig("prefix_lm", prefix_lm=law))(made.samples)
        assert found.prefix is not None
        counts = Counter(found.prefix.sum(1).tolist())
        if law.split == "fraction":
            assert counts == {8: 6000}
        else:  # 1 … 10, 600 each: four standard deviations are 93
            assert set(counts) == set(range(1, 11))
            assert all(abs(count - 600) < 93 for count in counts.values())


def test_a_separator_ends_the_prefix() -> None:
    made = pack([[9, 9]], 20)
    made.samples.tokens[0, 4] = 41
    config = ObjectiveConfig("prefix_lm", unit="document", prefix_lm=PrefixConfig("separator"))
    found = built(config)(made.samples)
    assert found.prefix is not None
    assert found.prefix[0].tolist() == [True] * 5 + [False] * 15  # the second text has none: all of it is asked for
    assert found.weights[0].tolist() == [0] * 4 + [1] * 15 + [0]


SPANS = st.builds(
    SpanConfig,
    rate=st.floats(0.05, 0.8),
    mean_length=st.sampled_from([1.0, 2.5, 3.0, 8.0]),
    sentinels=st.integers(1, 16),
    separator=st.booleans(),
    end_of_span=st.booleans(),
)


def fill(given: list[int], asked: list[int], config: SpanConfig) -> tuple[list[int], int, int]:
    """(text, tokens that were taken out, spans): every sentinel replaced by its span, slowly."""
    assert asked.pop() == EOD
    if config.separator:
        assert given.pop() == 41
    spans: dict[int, list[int]] = {}
    for token in asked:
        if token in SENTINELS:
            sentinel = token
            spans[sentinel] = []
        else:
            spans[sentinel].append(token)
    assert list(spans) == SENTINELS[: len(spans)], "sentinels come in order"
    if config.end_of_span:
        assert all(span.pop() == 42 for span in spans.values())
    assert all(spans.values()), "no span is empty"
    assert [token for token in given if token in SENTINELS] == list(spans)
    text: list[int] = []
    for token in given:
        text += spans.get(token, [token])
    return text, sum(map(len, spans.values())), len(spans)


def longest_fitting(full: int, config: SpanConfig, mode: bool, rooms: tuple[int, ...]) -> int:
    """How many tokens of a text go in, tried one by one."""
    for length in range(full, 1, -1):
        taken, spans = counts(length, config)
        given = length - taken + spans + config.separator + mode
        asked = taken + spans * (1 + config.end_of_span) + 1
        if (given + asked <= rooms[0]) if len(rooms) == 1 else (given <= rooms[0] and asked <= rooms[1]):
            return length
    return 0


def counts(length: int, config: SpanConfig) -> tuple[int, int]:
    """Tokens and spans that T5's definition takes out."""
    taken = min(max(int(np.round(length * config.rate)), 1), length - 1)
    spans = max(int(np.round(taken / config.mean_length)), 1)
    return taken, min(spans, taken, length - taken, config.sentinels)


@hypothesis.given(
    sizes=rows(), length=st.integers(8, 60), unit=UNITS, mode=st.booleans(), encoder=st.booleans(), config=SPANS
)
@settings(max_examples=250, deadline=None)
def test_what_is_asked_for_fills_what_is_given(
    sizes: list[list[int]], length: int, unit: str, mode: bool, encoder: bool, config: SpanConfig
) -> None:
    made, cut = pack(sizes, length), length // 2 if encoder else 0
    name = "<|mode_r|>" if mode else ""
    objective = ObjectiveConfig("span_corruption", unit=unit, mode=name, span_corruption=config)
    found = built(objective, encoder=cut)(made.samples)
    for row, packed in enumerate(made.texts):
        pairs = read_both(found, row, cut) if encoder else read_decoder(found, row)
        texts, rooms = texts_of(packed, unit), (cut, length - cut) if encoder else (length + 1,)
        for (given, asked), (text, _) in zip(pairs, texts, strict=False):
            size = longest_fitting(len(text), config, mode, rooms)
            used = (len(given), len(asked)) if encoder else (len(given) + len(asked),)
            rooms = tuple(room - much for room, much in zip(rooms, used, strict=True))
            if mode:
                assert given.pop(0) == 46
            told, taken, spans = fill(given, asked, config)
            assert told == text[:size]
            assert (taken, spans) == counts(size, config)
        if len(pairs) < len(texts):  # the next one would not have fitted, or the one before was cut
            cut_short = bool(pairs) and len(told) < len(texts[len(pairs) - 1][0])
            assert cut_short or longest_fitting(len(texts[len(pairs)][0]), config, mode, rooms) == 0


def test_every_way_to_take_spans_out_is_as_likely() -> None:
    """Of 8 tokens 4 taken out in 2 spans: three ways to cut what is kept by three to cut what is taken."""
    config = SpanConfig(rate=0.5, mean_length=2, sentinels=16)
    made = pack([[8]] * 9000, 16)
    found = built(ObjectiveConfig("span_corruption", span_corruption=config))(made.samples)
    seen = Counter(tuple(at for at in range(13) if found.inputs[row, at] in SENTINELS) for row in range(9000))
    assert len(seen) == 9
    assert all(abs(count - 1000) < 120 for count in seen.values()), seen  # four standard deviations


def test_a_drawn_rate_lies_evenly_between_its_bounds() -> None:
    config = SpanConfig(rate=0.1, final_rate=0.5, mean_length=50, sentinels=16)
    made = pack([[100]] * 4000, 120)
    found = built(ObjectiveConfig("span_corruption", span_corruption=config))(made.samples)
    taken = found.weights.sum(1) - 2  # without sentinel and end
    assert taken.min() == 10 and taken.max() == 50
    assert abs(taken.mean() - 30) < 4 * 40 / np.sqrt(12 * 4000)


def test_weights_go_with_their_tokens() -> None:
    made = pack([[12, 12]], 40)
    weights = made.samples.weights
    assert weights is not None
    weights[0, :12] = 0.5  # the first text and its end
    for name in ("prefix_lm", "span_corruption"):
        config = {"span_corruption": SpanConfig(sentinels=16)} if name == "span_corruption" else {}
        found = built(ObjectiveConfig(name, unit="document", **config))(made.samples)  # type: ignore[arg-type]
        assert found.documents is not None
        for number, weight in ((0, 0.5), (1, 1.0)):
            here = (np.append(found.documents[0], 9)[1:] == number) & (found.weights[0] > 0)
            assert here.any() and (found.weights[0][here] == weight).all()


@pytest.mark.parametrize("unit", ["sample", "document"])
def test_rows_of_padding_alone_ask_for_nothing(unit: str) -> None:
    made = pack([[5]], 12)
    made.samples.tokens[:] = EOD
    assert made.samples.weights is not None
    made.samples.weights[:] = 0
    for encoder in (0, 6):
        found = built(ObjectiveConfig("prefix_lm", unit=unit), encoder=encoder)(made.samples)
        assert not found.weights.any() and (found.inputs == EOD).all()
