"""Deduplication: estimates against exact Jaccard similarities, detection against theory, and a result that no cut changes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.clusters import Clusters
from data.clean.duplicates import MinhashConfig
from data.clean.minhash import MinHash, bands, chance, threshold
from data.clean.pipeline import Pipeline
from data.config import DataError
from data.document import Document

VOCABULARY = [f"w{number}" for number in range(2000)]


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def made_up(draw: random.Random, words: int) -> str:
    return " ".join(draw.choices(VOCABULARY, k=words))


def changed(draw: random.Random, text: str, rate: float) -> str:
    """Each word replaced with that probability."""
    return " ".join(draw.choice(VOCABULARY) if draw.random() < rate else word for word in text.split())


def pairs(count: int, rates: list[float], words: int = 300) -> list[tuple[str, str, float]]:
    draw = random.Random(7)
    found = []
    for number in range(count):
        one = made_up(draw, words)
        other = changed(draw, one, rates[number % len(rates)])
        found.append((one, other, jaccard(one, other)))
    return found


def test_signatures_estimate_jaccard_similarity_as_well_as_theory_says():
    """The mean over P independent permutations has a variance of s (1 - s) / P."""
    given_pairs = pairs(240, [0.0, 0.01, 0.02, 0.05, 0.1])
    minhash = MinHash(5, 112, 0)
    one, other = (minhash([pair[side] for pair in given_pairs]) for side in (0, 1))
    exact = np.array([pair[2] for pair in given_pairs])
    error = (one == other).mean(axis=1) - exact
    expected = np.sqrt(exact * (1 - exact) / 112)
    unequal = exact < 1
    assert (error[~unequal] == 0).all() and unequal.sum() > 150
    normal = error[unequal] / expected[unequal]
    assert abs(normal.mean()) < 0.3 and 0.85 < normal.std() < 1.15, (normal.mean(), normal.std())


def test_detection_follows_the_curve_of_bands_and_rows():
    given_pairs = pairs(600, [0.01, 0.02, 0.03, 0.05, 0.07])
    minhash = MinHash(5, 112, 3)
    one, other = (bands(minhash([pair[side] for pair in given_pairs]), 14) for side in (0, 1))
    found = (one == other).any(axis=1)
    expected = np.array([chance(pair[2], 14, 8) for pair in given_pairs])
    for low, high in ((0, 0.2), (0.2, 0.8), (0.8, 1.01)):
        part = (expected >= low) & (expected < high)
        deviation = np.sqrt((expected[part] * (1 - expected[part])).sum())
        assert part.sum() > 50 and abs(found[part].sum() - expected[part].sum()) < 4 * deviation + 1, (low, high)
    assert threshold(14, 8) == pytest.approx(0.6847, abs=1e-3) and chance(threshold(14, 8), 14, 8) == pytest.approx(0.5)
    text = MinhashConfig.__doc__ or ""
    assert (
        text
        and chance(0.8, 14, 8) == pytest.approx(0.92, abs=0.005)
        and chance(0.6, 14, 8) == pytest.approx(0.21, abs=0.005)
    )


@pytest.mark.parametrize("least", [0.0, 0.7])
def test_planted_copies_are_found_and_nothing_else(least):
    draw = random.Random(1)
    originals = [made_up(draw, draw.randint(60, 400)) for _ in range(300)]
    texts, group = list(originals), list(range(300))
    for number in range(0, 300, 3):
        for rate in (0.0, 0.005, 0.01)[: 1 + number % 3]:
            texts.append(changed(draw, originals[number], rate))
            group.append(number)
    documents = [Document(text, "s", "p", row) for row, text in enumerate(texts)]
    left, (tally,) = Pipeline([{"step": "minhash", "threshold": least}]).clean(documents)
    lost = [document.row for document in left if document.row >= 300]
    missed = [row for row in lost if jaccard(texts[row], originals[group[row]]) > 0.85]
    assert [document.row for document in left if document.row < 300] == list(range(300)), (
        "originals come first and stay"
    )
    assert not missed and len(lost) < 0.05 * (len(texts) - 300)
    assert tally.note == "pairs with a Jaccard similarity of 0.68 are found half of the time"
    copies = {document.row: document.columns["near_copies"] for document in left}
    assert sum(copies.values()) == len(texts) and copies[1] == 1 and copies[0] == 2


def test_a_threshold_makes_copies_surer():
    """Four rows a band make candidates of documents that share a third; comparing signatures leaves those that share more."""
    draw = random.Random(5)
    base = [made_up(draw, 200) for _ in range(60)]
    texts = [text for one in base for text in (one, changed(draw, one, 0.15))]
    assert max(jaccard(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)) < 0.6
    documents = [Document(text, "s", "p", row) for row, text in enumerate(texts)]
    loose, _ = Pipeline([{"step": "minhash", "bands": 28, "rows": 2}]).clean(documents)
    sure, _ = Pipeline([{"step": "minhash", "bands": 28, "rows": 2, "threshold": 0.8}]).clean(documents)
    assert len(loose) < 90 and len(sure) == 120


def groups_of(numbers: list[int]) -> list[Document]:
    """Documents with few texts, over three sources."""
    draw = random.Random(11)
    texts = [made_up(draw, 40) for _ in range(8)] + ["", "short one", "!?", "Short  ONE"]
    return [Document(texts[number % 12], "abc"[number % 5 % 3], "p", row) for row, number in enumerate(numbers)]


STEPS = [
    {"step": "exact"},
    {"step": "exact", "by": "text", "scope": "source"},
    {"step": "exact", "priority": ["c", "b"]},
    {"step": "minhash", "bands": 4, "rows": 2},
    {"step": "minhash", "bands": 4, "rows": 2, "threshold": 0.6, "priority": ["b"]},
    {"step": "minhash", "bands": 4, "rows": 2, "threshold": 0.6, "scope": "source"},
]


@pytest.mark.parametrize("step", STEPS, ids=str)
@settings(max_examples=25, deadline=None)
@given(numbers=st.lists(st.integers(0, 59), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_the_result_does_not_depend_on_parts(step, numbers, cuts):
    documents = groups_of(numbers)
    stage = Pipeline([step]).stages[0]
    whole, whole_tally = Pipeline([step]).clean(documents)
    borders = [0, *sorted(min(cut, len(documents)) for cut in cuts), len(documents)]
    parts = [documents[a:b] for a, b in zip(borders, borders[1:], strict=False)]  # noqa: RUF007
    ran = [stage.run(part) for part in parts]
    decision = stage.decide([part.signatures for part in ran])
    assert [d.row for d, keep in zip(documents, decision.keep, strict=True) if keep] == [d.row for d in whole]
    assert sum(document.columns[next(iter(decision.columns))] for document in whole) == len(documents)
    # what definition says: one stays of each class of equal texts (and sources), the first by priority and place
    priority = list(step.get("priority", []))
    rank = {source: (priority.index(source) if source in priority else len(priority)) for source in "abc"}
    best: dict[object, Document] = {}
    for document in documents:
        text = document.text if step.get("by") == "text" else document.text.lower().split()
        name = (str(text), document.source if step.get("scope") == "source" else "")
        if name not in best or rank[document.source] < rank[best[name].source]:
            best[name] = document
    assert sorted(d.row for d in best.values()) == [d.row for d in whole]
    assert whole_tally[0].before - whole_tally[0].after == whole_tally[0].reasons.get(stage.last[1].reason, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_clusters_are_connected_components(size, edges):
    edges = [(a % size, b % size) for a, b in edges]
    clusters = Clusters(size)
    half = len(edges) // 2
    for part in (edges[:half], edges[half:]):
        array = np.array(part, dtype=np.int64).reshape(-1, 2)
        clusters.join(array[:, 0], array[:, 1])
    label = list(range(size))
    for _ in range(size):
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    assert clusters.first.tolist() == label


def test_signatures_depend_on_text_and_seed_alone():
    texts = ["a b c d e f g", "x", "", "日本語のテキスト", "A, B; c d e f g!"]
    minhash = MinHash(5, 16, 0)
    together = minhash(texts)
    assert (together == np.concatenate([minhash([text]) for text in texts])).all()
    assert (together[0] == together[4]).all(), "neither case nor punctuation counts"
    assert not (together[0] == MinHash(5, 16, 1)(texts)[0]).any()
    assert together[0].tolist()[:2] == [RECORDED[0], RECORDED[1]], "signatures outlive releases of numpy"


RECORDED = (157561547, 1880598561)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"step": "minhash", "bands": 0}, "bands = 0: it must be at least 1"),
        ({"step": "minhash", "threshold": 1.5}, "threshold = 1.5: it must be between 0 and 1"),
        ({"step": "minhash", "scope": "sources"}, "scope = 'sources': it must be one of all, source"),
        ({"step": "exact", "by": "letters"}, "by = 'letters': it must be one of words, text"),
        ({"step": "exact", "scope": "source", "priority": ["a"]}, "priority = ['a'] has no effect with scope = source"),
    ],
)
def test_impossible_options_are_refused(options, told):
    with pytest.raises(DataError) as caught:
        Pipeline([options])
    assert told in str(caught.value)
