"""The bench of deduplication: its corpus, its judgement on made-up answers, and the whole of it on few documents."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from launcher.bench.datadedup import COPY, GRADES, jaccard, plant, quality, run, show, triaxis
from launcher.cli import _command, main
from launcher.config import RecipeError


def test_copies_are_planted_with_known_similarity() -> None:
    planted = plant(90, 60)
    again = plant(90, 60)
    assert planted.texts == again.texts and np.array_equal(planted.similarity, again.similarity)
    assert (planted.similarity[2::3] > 0).sum() > 20 and not planted.similarity[0::3].any()
    copy = int(np.argmax((planted.similarity > 0.5) & (planted.similarity < 1)))
    words = np.array([int(word[1:]) for word in planted.texts[copy].split()])
    others = [np.array([int(word[1:]) for word in text.split()]) for text in planted.texts[:copy]]
    assert max(jaccard(words, other) for other in others) == planted.similarity[copy]


def test_recall_and_precision_of_known_answers() -> None:
    similarity = np.array([0, 0, 1.0, 0.9, 0.85, 0.6, 0.3])
    keep = np.array([True, False, False, False, True, False, True])
    found = quality(keep, similarity)
    assert found["recall"] == 2 / 3 and found["precision"] == 3 / 4 and found["dropped"] == 4
    assert [grade["documents"] for grade in found["grades"]] == [1, 2, 0, 1, 1]
    assert [grade["dropped"] for grade in found["grades"]] == [1.0, 0.5, None, 1.0, 0.0]


def test_our_step_keeps_all_originals_and_drops_copies() -> None:
    planted = plant(240, 80)
    keep = triaxis(planted.texts)
    assert keep[planted.similarity == 0].all() and not keep[planted.similarity > 0.97].any()


def test_a_bench_of_few_documents_has_every_figure() -> None:
    pytest.importorskip("datasketch", reason="an extra: pip install 'triaxis[bench]'")
    figures = json.loads(json.dumps(run(documents=60, words=40, rounds=2)))
    assert set(figures["contenders"]) == {"triaxis", "datasketch", "datasketch, xxhash"}
    for name, found in figures["contenders"].items():
        assert found["documents_per_second"] > 0 and found["precision"] == 1.0
        assert ("triaxis_is" in found) == (name != "triaxis")
        assert [(grade["from"], grade["to"]) for grade in found["grades"]] == list(GRADES)
    screen = io.StringIO()
    show(figures, Console(file=screen, width=160))
    assert "datasketch" in screen.getvalue() and f"recall at {COPY}" in screen.getvalue()


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(RecipeError, match="--rounds=1 --documents=60 --words=40"):
        run(documents=60, words=40, rounds=1)


def test_the_command_is_found_by_three_words(capsys: pytest.CaptureFixture) -> None:
    assert _command(["bench", "data", "dedup", "--rounds", "3"]) == "bench data dedup"
    assert _command(["data", "build", "corpus=stdlib"]) == "data build" and _command(["train"]) == "train"
    assert _command(["data", "foo"]) == "data foo" and _command([]) == ""
    assert main(["bench", "data", "dedup", "--rounds", "1"]) == 1
    assert "at least 2 rounds" in capsys.readouterr().err
    assert main(["complete", "triaxis bench da"]) == 0
    assert capsys.readouterr().out.split() == ["data"]
    assert main(["complete", "triaxis bench data "]) == 0
    assert "dedup" in capsys.readouterr().out
