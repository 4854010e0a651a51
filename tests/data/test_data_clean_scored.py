"""Decontamination against a search by hand, and cuts by scores and quantiles with a scorer that can be followed."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from data.clean.base import Scores, Seams
from data.clean.pipeline import Pipeline
from data.config import DataError
from data.document import Document

WORDS = [f"w{number}" for number in range(300)]


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def made_up(draw: random.Random, words: int) -> list[str]:
    return draw.choices(WORDS, k=words)


def test_documents_with_a_run_of_a_test_set_are_found_and_no_others(tmp_path):
    draw = random.Random(3)
    tests = [made_up(draw, length) for length in (40, 25, 13, 9, 8, 7)]
    file = tmp_path / "bench.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(json.dumps({"question": " ".join(test)}) for test in tests).encode()))
    documents, expected = [], []
    for number in range(200):
        words = made_up(draw, draw.randint(20, 80))
        test = tests[number % len(tests)]
        length = draw.randint(5, len(test))
        start = draw.randrange(len(test) - length + 1)
        if number % 3:
            words[10:10] = test[start : start + length]
        text = " ".join(words)
        documents.append(Document(text.title() if number % 2 else text, "s", "p", number))
        sizes = [min(13, len(test)) for test in tests]
        expected.append(
            any(
                size >= 8 and runs(text, size) & runs(" ".join(test), size)
                for test, size in zip(tests, sizes, strict=True)
            )
        )
    step = {"step": "decontaminate", "files": [str(file)], "fields": ["question", "answer"]}
    left, (tally,) = Pipeline([step]).clean(documents)
    assert [document.row for document in left] == [row for row, found in enumerate(expected) if not found]
    assert tally.reasons == {"in test set bench.jsonl.gz": sum(expected)} and 20 < sum(expected) < 160
    marked, _ = Pipeline([{**step, "max_share": 1}]).clean(documents)
    assert [document.columns["test_set"] == "bench.jsonl.gz" for document in marked] == expected
    assert [document.columns["test_overlap"] > 0 for document in marked] == expected


def test_what_was_matched_is_told(tmp_path):
    file = tmp_path / "set.txt"
    file.write_text("One, two; THREE four five\nsix seven eight. nine ten")
    documents = [
        Document("before it: one two three four five six - and more words after", "s", "p", 0),
        Document("three four five six seven", "s", "p", 1),
        Document("one two three four six five", "s", "p", 2),
    ]
    options = {"step": "decontaminate", "files": [str(file)], "ngram": 6, "min_words": 4}
    left, (tally,) = Pipeline([options]).clean(documents)
    assert [document.row for document in left] == [1, 2] and left[0].columns == {"test_overlap": 0.0, "test_set": None}
    assert [sample.detail for sample in tally.samples] == ["row 0: one two three four five six"]
    (first, *_), _ = Pipeline([{**options, "max_share": 0.6}]).clean(documents)
    assert first.columns == {"test_overlap": 6 / 12, "test_set": "set.txt"}


def test_test_sets_that_cannot_serve_are_refused(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_text('{"question": "x"}\n')

    def refused(match, **options):
        with pytest.raises(DataError, match=match):
            _ = Pipeline([{"step": "decontaminate", "files": [str(file)], **options}]).stages

    refused(r"no line has text in fields = \['text'\]")
    refused("'nowhere.txt': cannot be read", files=["nowhere.txt"])
    refused("name at least one test set", files=[])
    refused("min_words = 20: it must be between 1 and ngram = 13", min_words=20)
    file.write_text("{broken")
    refused("cannot be read")


def letters(run: str, tokens: int):
    """A language model for which every letter costs its place in the alphabet in bits; the run's file holds an offset."""
    offset = float(Path(run).read_text())

    def score(texts):
        read = [text[: tokens or None] for text in texts]
        bits = np.array([sum(ord(letter) - ord("a") + offset for letter in text) for text in read])
        sizes = np.array([len(text) for text in read])
        return Scores(bits * np.log(2), sizes, sizes)

    return score


def run_of(directory: Path, offset: float) -> str:
    (directory / "run").write_text(str(offset))
    return str(directory / "run")


def test_documents_are_scored_and_cut_by_limits(tmp_path):
    documents = [Document(text, "s", "p", row) for row, text in enumerate(["aaaa", "bbcc", "zzzz", "aaaazzzz"])]
    step = {"step": "perplexity", "run": run_of(tmp_path, 1), "tokens": 4}
    left, (tally,) = Pipeline([{**step, "max_perplexity": 100}], Seams(letters)).clean(documents)
    assert [document.row for document in left] == [0, 1, 3], "four tokens of the last one are read"
    assert [document.columns["bits_per_byte"] for document in left] == pytest.approx([1, 2.5, 1])
    assert [document.columns["perplexity"] for document in left] == pytest.approx([2, 2**2.5, 2])
    assert tally.reasons == {"perplexity > 100": 1}
    _, (tally,) = Pipeline([{**step, "min_bits_per_byte": 2}], Seams(letters)).clean(documents)
    assert tally.reasons == {"bits_per_byte < 2": 2}


def test_a_share_of_the_corpus_is_cut_by_quantiles(tmp_path):
    draw = random.Random(2)
    documents = [Document(chr(97 + draw.randrange(26)), "s", "p", row, {"mine": None}) for row in range(101)]
    steps = [
        {"step": "perplexity", "run": run_of(tmp_path, 0)},
        {"step": "quantile", "column": "bits_per_byte", "low": 0.1, "high": 0.8},
    ]
    left, (_, tally) = Pipeline(steps, Seams(letters)).clean(documents)
    order = sorted(document.text for document in documents)
    assert [d.row for d in left] == [d.row for d in documents if order[10] <= d.text <= order[80]]
    assert tally.reasons == {"bits_per_byte outside of quantiles 0.1 to 0.8": 101 - len(left)}
    assert tally.note == f"kept bits_per_byte from {ord(order[10]) - 97:g} to {ord(order[80]) - 97:g}"
    with pytest.raises(DataError, match="column = 'mine': no document has it"):
        Pipeline([{"step": "quantile", "column": "mine", "low": 0.5}]).clean(documents)
    some = [Document("x", "s", "p", row, {"n": value}) for row, value in enumerate([3, None, 1.5, 2])]
    kept, _ = Pipeline([{"step": "quantile", "column": "n", "low": 0.5, "missing": "keep"}]).clean(some)
    assert [document.row for document in kept] == [0, 1, 3]
    kept, _ = Pipeline([{"step": "quantile", "column": "n", "low": 0.5}]).clean(some)
    assert [document.row for document in kept] == [0, 3]


def test_a_run_that_is_not_there_is_told_before_anything_is_read():
    with pytest.raises(DataError, match="step perplexity, run = 'nowhere': no such directory"):
        _ = Pipeline([{"step": "perplexity", "run": "nowhere"}], Seams(letters)).stages


@pytest.mark.parametrize(
    ("step", "told"),
    [
        ({"step": "perplexity", "run": ""}, "run is empty"),
        (
            {"step": "perplexity", "run": "x", "min_perplexity": 3, "max_perplexity": 2},
            "it must be at most max_perplexity = 2",
        ),
        ({"step": "perplexity", "run": "x", "tokens": -1}, "tokens = -1: it must be at least 0"),
        (
            {"step": "quantile", "column": "n", "low": 0.5, "high": 0.5},
            "low = 0.5: it must be at least 0 and below high",
        ),
        ({"step": "quantile", "column": "n", "missing": "no"}, "missing = 'no'"),
        ({"step": "perplexity", "run": "x"}, "step perplexity needs a language model"),
    ],
)
def test_impossible_cuts_are_refused(step, told):
    with pytest.raises(DataError) as caught:
        _ = Pipeline([step]).stages
    assert told in str(caught.value)
