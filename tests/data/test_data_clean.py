"""Cleaning as a protocol: options, stages, and tallies that do not depend on how a corpus was cut into parts."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.clean.base import SAMPLES_PER_REASON, Decision, Dropped, Seams, Tally, Trimmed, tally
from data.clean.options import configure
from data.clean.pipeline import Pipeline, Stage
from data.clean.show import details, table
from data.clean.steps import STEPS, parse
from data.config import DataError
from data.document import Document


def made_up(count: int) -> list[Document]:
    return [
        Document(f"text {row % 7}\nline {row}", "a" if row % 3 else "b", "p", row, {"n": row}) for row in range(count)
    ]


def outcome(document: Document):
    """Drops some, trims some, changes some."""
    kind = document.row % 5
    if kind < 2:
        return Dropped(document, f"reason {kind}", str(document.row))
    if kind == 2:
        first, rest = document.text.split("\n")
        return Trimmed(replace(document, text=rest), (("first line", first),))
    return replace(document, text=document.text + "!") if kind == 3 else document


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 80), st.lists(st.integers(0, 80), max_size=5), st.randoms(use_true_random=False))
def test_tallies_add_up_in_any_grouping(count, cuts, draw):
    documents = made_up(count)
    whole = tally("step", documents, [outcome(document) for document in documents])
    borders = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [documents[a:b] for a, b in pairwise(borders)]
    tallies = [tally("step", part, [outcome(document) for document in part]) for part in parts]
    draw.shuffle(tallies)
    while len(tallies) > 1:
        place = draw.randrange(len(tallies) - 1)
        tallies[place : place + 2] = [tallies[place] + tallies[place + 1]]
    assert (tallies[0] if tallies else Tally("step")) == whole
    assert Tally.of_plain(whole.plain()) == whole


def test_a_tally_counts_documents_characters_lines_and_reasons():
    documents = [Document("aaaa\nbb", "s", "p", row) for row in range(10)]
    found = tally("step", documents, [outcome(document) for document in documents])
    assert (found.before, found.after, found.changed) == (10, 6, 4)
    assert (found.characters_before, found.characters_after) == (70, 2 * 2 + 2 * 8 + 2 * 7)
    assert found.reasons == {"reason 0": 2, "reason 1": 2} and found.lines == {"first line": 2}
    assert {(sample.reason, sample.detail) for sample in found.samples} >= {("reason 0", "0"), ("first line", "line")}


def test_samples_are_few_of_each_reason_and_fair():
    documents = made_up(400)
    found = tally("step", documents, [Dropped(document, "all") for document in documents])
    assert len(found.samples) == SAMPLES_PER_REASON
    other = tally("other", documents, [Dropped(document, "all") for document in documents])
    assert {s.row for s in found.samples} != {s.row for s in other.samples}, "the draw is keyed by the step"
    assert max(s.row for s in found.samples) > SAMPLES_PER_REASON, "not the first ones"


@dataclass(frozen=True)
class EveryConfig:
    name: ClassVar[str] = "every"
    reads: ClassVar[tuple[str, ...]] = ("n",)
    writes: ClassVar[tuple[str, ...]] = ()
    count: int
    share: float = 0.5
    names: tuple[str, ...] = ()
    loud: bool = False


def test_options_become_a_config():
    known = {"every": EveryConfig}
    found = configure(known, {"step": "every", "count": "1_000", "share": 1, "names": ["x"], "loud": True}, "c[0]")
    assert found == EveryConfig(1000, 1.0, ("x",), True)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("every", "c[0] = 'every': it must be a step and its options"),
        ({"count": 3}, "it must be a step and its options"),
        ({"step": "evry"}, "c[0].step = 'evry': no such step; did you mean every?"),
        ({"step": "every", "cuont": 3}, "c[0].cuont = 3: step every has no such option; did you mean count?"),
        ({"step": "every"}, "c[0].count is missing"),
        ({"step": "every", "count": 1.5}, "c[0].count = 1.5: it must be a whole number"),
        ({"step": "every", "count": 1, "share": "nan"}, "c[0].share = 'nan': it must be a number"),
        ({"step": "every", "count": 1, "names": "x"}, "c[0].names = 'x': it must be a list"),
        ({"step": "every", "count": 1, "names": [1]}, "c[0].names[0] = 1: it must be text"),
        ({"step": "every", "count": 1, "loud": 1}, "c[0].loud = 1: it must be true or false"),
    ],
)
def test_options_that_are_not_understood_are_refused_by_name(options, told):
    with pytest.raises(DataError) as caught:
        configure({"every": EveryConfig}, options, "c[0]")
    assert told in str(caught.value)


@pytest.mark.parametrize("name", STEPS)
def test_every_option_of_every_step_is_documented(name):
    from launcher.schema import documentation_of

    kind = STEPS[name]
    assert kind.__doc__ and kind.name == name
    assert set(documentation_of(kind)) == {item.name for item in fields(kind)}


def test_values_are_refused_with_the_place_of_the_step():
    with pytest.raises(DataError, match=r"corpus.clean\[1\].where = 'n >': not an expression"):
        Pipeline([{"step": "unicode"}, {"step": "filter", "where": "n >"}])
    assert parse({"step": "filter", "where": "n > 1"}, "x").name == "filter"


class _Even:
    """Keeps the first document of each number of characters modulo `kinds`."""

    reason = "seen"

    def signature(self, documents):
        return np.array([[document.row % 3] for document in documents], dtype=np.uint64).reshape(-1, 1)

    def decide(self, signatures):
        _, first, inverse = np.unique(signatures.column(0), return_index=True, return_inverse=True)
        keep = np.zeros(len(signatures), dtype=bool)
        keep[first] = True
        return Decision(keep, {"same": np.bincount(inverse)[inverse]}, "by threes")


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_stage_gives_the_same_however_documents_are_cut_into_parts(parts):
    documents = made_up(23)
    stage = Stage([("odd", lambda batch: [outcome(document) for document in batch])], ("even", _Even()))
    cuts = [documents[len(documents) * i // parts : len(documents) * (i + 1) // parts] for i in range(parts)]
    ran = [stage.run(cut) for cut in cuts]
    decision = stage.decide([part.signatures for part in ran])
    found, at, of_last = [], 0, Tally("even")
    for part in ran:
        through, done = stage.apply(part.documents, decision.part(at, at + len(part.documents)))
        at, of_last = at + len(part.documents), of_last + done
        found += through
    assert [document.row for document in found] == [2, 3, 4]
    assert sum(document.columns["same"] for document in found) == of_last.before == 23 - 10
    assert of_last.reasons == {"seen": 10} and of_last.note == "by threes"
    local = ran[0].tallies[0]
    for part in ran[1:]:
        local += part.tallies[0]
    assert local == tally("odd", documents, [outcome(document) for document in documents])


def test_a_pipeline_pickles_and_tells_each_step():
    pipeline = Pipeline([{"step": "unicode"}, {"step": "filter", "where": "n % 2 == 0"}], Seams())
    again = pickle.loads(pickle.dumps(pipeline))
    documents = [*made_up(4), Document("\x00", "s", "p", 9)]
    (left, tallies), (same, _) = pipeline.clean(documents), again.clean(documents)
    assert left == same and [document.row for document in left] == [0, 2]
    assert [(found.step, found.before, found.after) for found in tallies] == [("unicode", 5, 4), ("filter", 4, 2)]
    assert tallies[1].reasons == {"not n % 2 == 0": 2}
    assert Pipeline([]).clean(documents) == (documents, [])


def test_a_filter_on_a_column_that_no_document_has_is_a_mistake():
    with pytest.raises(DataError, match=r"where = 'm > 1': no column 'm'"):
        Pipeline([{"step": "filter", "where": "m > 1"}]).clean(made_up(3))
    some = [Document("x", "s", "p", 0, {"n": 3}), Document("x", "s", "p", 1)]
    assert Pipeline([{"step": "filter", "where": "n > 1"}]).clean(some)[0] == some[:1]


def test_what_was_done_is_told_to_a_person():
    documents = [Document(f"text {row}\nsecond", "s", "dir/p", row) for row in range(10)]
    found = tally("rules", documents, [outcome(document) for document in documents])
    lines = table([found, Tally("rest")]).split("\n")
    assert lines[0].split() == ["step", "before", "after", "kept", "characters", "kept", "changed"]
    assert lines[1].split() == ["rules", "10", "6", "60.0%", f"{found.characters_after / 130:.1%}", "4"]
    assert lines[2].split() == ["rest", "0", "0", "-", "-", "0"] and table([]) == "no cleaning steps"
    told = details(replace(found, note="a note"), examples=1)
    assert told.startswith("rules: a note\n  2 documents: reason 0\n    dir/p, row ")
    assert "  2 lines: first line\n    dir/p, row " in told and "'text" in told and len(told.split("\n")) == 7


ALL = [
    {"step": "unicode", "form": "NFKC", "entities": True, "quotes": True},
    {"step": "urls", "block": ["x.org"]},
    {"step": "language"},
    {"step": "lines", "max_word_characters": 50, "boilerplate": True, "repeats": 1},
    {"step": "c4", "terminal": False, "min_words": 0, "min_sentences": 0},
    {"step": "signals"},
    {"step": "gopher", "min_words": 0, "min_stop_words": 0},
    {"step": "filter", "where": "word_count >= 0 or language is None"},
    {"step": "exact"},
    {"step": "minhash", "threshold": 0.5},
    {"step": "quantile", "column": "word_entropy", "low": 0.0},
]


@cache
def made_once() -> list[Pipeline]:
    """Every step that can stand alone, and all in a row."""
    alone = [[step] for step in ALL if step["step"] not in ("gopher", "filter", "quantile")]
    return [Pipeline(steps) for steps in [*alone, ALL]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=6), st.integers(0, 5))
def test_no_text_is_too_strange_for_any_step(texts, many):
    texts[0] = texts[0] * (1 + many)
    documents = [Document(text, "s", "p", row, {"url": text}) for row, text in enumerate([*texts, "plain words"])]
    *each, whole = made_once()
    for pipeline in each:
        left, (found,) = pipeline.clean(documents)
        assert found.before == len(documents) and found.after == len(left) == found.before - sum(found.reasons.values())
        assert not left or set(pipeline.columns) <= set(left[0].columns)
    left, tallies = whole.clean(documents)
    assert [found.step for found in tallies] == [step["step"] for step in ALL]
    for one, other in pairwise(tallies):
        assert one.after == other.before and one.characters_after == other.characters_before
    assert all(document.text.strip() for document in left)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "recipes" / "corpus").glob("*.yaml")), ids=str)
def test_steps_of_recipes_are_understood(file):
    steps = yaml.safe_load(file.read_text()).get("clean", [])
    assert [step["step"] for step in Pipeline(steps).spec()] == [step["step"] for step in steps]
    assert steps or file.stem not in ("web", "c4", "stdlib_clean", "stdlib_scored")
