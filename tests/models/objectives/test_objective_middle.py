"""Fill in the middle: a document that is rearranged is read back, the others and all borders are as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.objectives import Example, build_objective
from models.objectives.config import MiddleConfig, ObjectiveConfig
from tests.models.objectives.made import EOD, VOCABULARY, Made, pack, rows

PREFIX, MIDDLE, SUFFIX = 43, 44, 45


def encode(text: str) -> np.ndarray:
    """Pairs of equal letters are one token, so that encoding parts gives other tokens than encoding the whole."""
    found, place = [], 0
    while place < len(text):
        double = text[place : place + 2] == text[place] * 2
        found.append(ord(text[place]) - 96 + 13 * double)
        place += 1 + double
    return np.array(found, np.int64)


def decode(tokens: np.ndarray) -> str:
    return "".join(
        chr(96 + token) if token <= 13 else chr(96 + token - 13) * 2 for token in np.asarray(tokens).tolist()
    )


def told(config: MiddleConfig, made: Made) -> Example:
    vocabulary = replace(VOCABULARY, encode=encode, decode=decode)
    return build_objective(ObjectiveConfig("fill_in_the_middle", fill_in_the_middle=config), vocabulary, 3)(
        made.samples
    )


def read_back(line: list[int]) -> tuple[str, list[int], list[int], list[int]]:
    """(order, prefix, middle, suffix) of a rearranged document; one without a prefix looks alike in both orders."""
    assert line[0] == PREFIX
    first, second = line.index(SUFFIX), line.index(MIDDLE)
    if first == 1:  # <prefix> <suffix> suffix <middle> prefix middle: the border of the last two is not told
        return "either", line[second + 1 :], [], line[2:second]
    return "psm", line[1:first], line[second + 1 :], line[first + 1 : second]


@given(
    sizes=rows(), length=st.integers(8, 60), rate=st.sampled_from([0.0, 0.5, 1.0]), spm=st.sampled_from([0.0, 0.5, 1.0])
)
@settings(max_examples=150, deadline=None)
def test_a_document_is_read_back(sizes: list[list[int]], length: int, rate: float, spm: float) -> None:
    made = pack(sizes, length)
    found = told(MiddleConfig(rate, spm), made)
    lines = np.concatenate([found.inputs, found.targets[:, -1:]], 1)
    assert np.array_equal(found.targets, lines[:, 1:])
    assert np.array_equal(lines == EOD, made.samples.tokens == EOD), "borders stay where they were"
    assert found.documents is None and found.prefix is None
    for row, texts in enumerate(made.texts):
        place = 0
        for text, _ in texts:
            line = lines[row, place : place + len(text)].tolist()
            counted = found.weights[row, max(0, place - 1) : place + len(text) - 1].tolist()
            if line[0] != PREFIX or len(text) <= 3:
                assert line == text and all(counted)
                assert rate < 1 or len(text) <= 3
            else:
                order, prefix, middle, suffix = read_back(line)
                assert prefix + middle + suffix == text[:-3], "what the markers' room cost is the end"
                assert rate > 0 and (order == "either" or spm < 1)
                markers = [token in (PREFIX, MIDDLE, SUFFIX) for token in line[1 if place == 0 else 0 :]]
                assert [weight == 0 for weight in counted] == markers, "all but the markers is predicted"
            place += len(text) + 1


def test_rates_and_cuts_are_what_is_asked_for() -> None:
    made = pack([[13]] * 6000, 16)
    found = told(MiddleConfig(0.7, 0.25), made)
    lines = [read_back(line[:13]) for line in found.inputs.tolist() if line[0] == PREFIX]
    assert abs(len(lines) / 6000 - 0.7) < 4 * np.sqrt(0.21 / 6000)
    # two cuts, each anywhere in 0 … 10: the smaller is at most k with probability 1 - ((10 - k) / 11) ** 2
    at_most = np.array([1 - ((10 - k) / 11) ** 2 for k in range(11)])
    orders = [order for order, *_ in lines]
    share = 0.75 * (1 - at_most[0])
    assert abs(orders.count("psm") / len(orders) - share) < 4 * np.sqrt(share * (1 - share) / len(orders))
    firsts = np.bincount([len(prefix) for order, prefix, _, _ in lines if order == "psm"], minlength=11)[1:]
    expected = np.diff(at_most) / (1 - at_most[0]) * firsts.sum()
    assert np.abs(firsts - expected).max() < 4.5 * np.sqrt(expected.max())


@given(sizes=rows(), length=st.integers(8, 60))
@settings(max_examples=150, deadline=None)
def test_between_characters_the_text_is_read_back(sizes: list[list[int]], length: int) -> None:
    made = pack(sizes, length)
    tokens = made.samples.tokens
    tokens[tokens != EOD] = tokens[tokens != EOD] % 26 + 1
    for row in tokens:  # as the tokenizer would have them
        for at in range(1, len(row)):
            if row[at] == row[at - 1] <= 13 and row[at] != EOD:
                row[at] = row[at] % 13 + 1
    found = told(MiddleConfig(1.0, 0.5, "character"), made)
    lines = np.concatenate([found.inputs, found.targets[:, -1:]], 1)
    for row, texts in enumerate(made.texts):
        place = 0
        for text, ended in texts:
            was = tokens[row, place : place + len(text)]
            line = lines[row, place : place + len(text)].tolist()
            while line and line[-1] == EOD:  # what encoding anew saved
                line.pop()
            if line[0] == PREFIX and len(text) > 3:
                _, prefix, middle, suffix = read_back(line)
                whole, parts = (
                    decode(was[:-3]),
                    (decode(np.array(prefix)), decode(np.array(middle)), decode(np.array(suffix))),
                )
                assert whole.startswith("".join(parts)), "of the text, at most its end is missing"
                assert len(whole) - len("".join(parts)) <= 8
                if ended:
                    assert lines[row, place + len(line)] == EOD
            else:
                assert line == was.tolist()
            place += len(text) + 1


def test_a_part_of_a_character_leaves_the_document_as_it_was() -> None:
    made = pack([[12]], 16)
    vocabulary = replace(VOCABULARY, encode=encode, decode=lambda tokens: "\ufffd" * len(tokens))
    config = ObjectiveConfig("fill_in_the_middle", fill_in_the_middle=MiddleConfig(1.0, 0.5, "character"))
    found = build_objective(config, vocabulary, 3)(made.samples)
    assert np.array_equal(found.inputs, made.samples.tokens[:, :-1])
