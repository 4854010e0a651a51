"""Scores of texts against the same model called by hand, and the cleaning step that takes them."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.clean.base import Seams
from data.clean.pipeline import Pipeline
from data.config import DataError
from data.document import Document
from data.tokenizers import load_corpus_tokenizer
from launcher import scoring
from launcher.config import Recipe
from launcher.generate import load_model
from launcher.scoring import load_scorer

KNOWN = "the model token stream of and reads writes always it def return"
TEXTS = ["the model reads", "", "always it def return if\n" * 12, "ÿ§x qq zz!", KNOWN]


@pytest.fixture
def run(straight: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    threads = torch.get_num_threads()
    monkeypatch.chdir(straight.parents[1])  # data.path of a run is relative to where it was started
    yield straight
    torch.set_num_threads(threads)


def by_hand(run: Path, text: str, window: int) -> float:
    """Nats of a text, a window at a time."""
    model, recipe = load_model(run)
    tokenizer = load_corpus_tokenizer(recipe.data.home)
    ids = torch.tensor([tokenizer.eod, *tokenizer.encode(text).tolist()]) if text else torch.tensor([tokenizer.eod])
    total = 0.0
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window + 1]
        model.clock.start(0)
        with torch.no_grad():
            logits = model.model(part[None, :-1])[:, 0, : tokenizer.vocab_size]
        total += float(F.cross_entropy(logits.float(), part[1:], reduction="sum"))
    return total


def test_scores_are_the_models_own(run: Path) -> None:
    _, recipe = load_model(run)
    window = min(recipe.model.max_sequence, recipe.train.sequence_length)
    assert len(TEXTS[2]) > 2 * window
    scores = load_scorer(str(run), 0)(TEXTS)
    assert scores.tokens.tolist() == scores.bytes.tolist() == [len(text.encode()) for text in TEXTS], "a token a byte"
    for text, nats in zip(TEXTS, scores.nats, strict=True):
        assert nats == pytest.approx(by_hand(run, text, window), rel=1e-5, abs=1e-6)
    assert scores.nats[1] == 0 and scores.nats[4] / scores.tokens[4] < scores.nats[3] / scores.tokens[3]


def test_a_score_does_not_depend_on_the_texts_beside(run: Path) -> None:
    score = load_scorer(str(run), 0)
    together = score(TEXTS).nats
    alone = np.concatenate([score([text]).nats for text in reversed(TEXTS)])[::-1]
    assert np.array_equal(together, alone), "to the last bit"


def test_long_texts_are_read_from_their_beginning(run: Path) -> None:
    scores = load_scorer(str(run), 5)(["the model reads", "the m", "ab"])
    assert scores.tokens.tolist() == [5, 5, 2] and scores.bytes.tolist() == [5, 5, 2]
    assert scores.nats[0] == scores.nats[1]


def test_the_step_cuts_by_the_run(run: Path) -> None:
    documents = [Document(text, "s", "p", row) for row, text in enumerate(TEXTS)]
    step = {"step": "perplexity", "run": str(run), "tokens": 0}
    left, _ = Pipeline([step], Seams(load_scorer)).clean(documents)
    scores = load_scorer(str(run), 0)(TEXTS)
    for place in (0, 2, 3, 4):
        found = left[place].columns
        assert found["perplexity"] == pytest.approx(math.exp(scores.nats[place] / scores.tokens[place]))
        assert found["bits_per_byte"] == pytest.approx(math.log2(found["perplexity"])), "a token is a byte here"
    limit = (left[3].columns["perplexity"] + left[4].columns["perplexity"]) / 2
    kept, (tally,) = Pipeline([{**step, "max_perplexity": limit}], Seams(load_scorer)).clean(documents)
    assert 3 not in [document.row for document in kept] and 4 in [document.row for document in kept]
    assert sum(tally.reasons.values()) == 5 - len(kept)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    before = os.getcwd()
    with pytest.raises(DataError, match=r"step perplexity, run = '.*nowhere': "):
        load_scorer(str(tmp_path / "nowhere"), 0)
    assert os.getcwd() == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"causal": False}, "model.causal=false"), ({"encoder_layers": 2, "encoder_length": 8}, "model.encoder_layers=2")],
)
def test_a_model_without_a_perplexity_is_refused(changes: dict, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(Recipe(), model=replace(Recipe().model, **changes))
    monkeypatch.setattr(scoring, "load_model", lambda place: (None, recipe))
    with pytest.raises(DataError, match=f"{told}.*perplexity; name another run"):
        load_scorer("runs/other", 0)


def test_a_build_cuts_by_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What a recipe says goes through the command, processes and stages to a corpus, the same at one process and at two."""
    from launcher.cli import main

    text = tmp_path / "text"
    text.mkdir()
    for number in range(30):
        (text / f"{number:02d}.txt").write_text(
            f"{number} {KNOWN} {KNOWN}" if number % 3 else f"qq{number} ÿ§zz {number * 'x%'}!"
        )
    steps = f"[{{step: perplexity, run: {run}}}, {{step: quantile, column: bits_per_byte, high: 0.6}}, {{step: exact}}]"
    found = []
    for workers in (1, 2):
        directory = tmp_path / f"corpus{workers}"
        options = ["corpus=files", "corpus.name=scored", f"corpus.sources=[{text}]", f"corpus.directory={directory}"]
        options += [f"corpus.clean={steps}", "tokenizer=byte", f"corpus.workers={workers}", f"data.path={directory}"]
        assert main(["data", "build", *options]) == 0, capsys.readouterr()
        tallies = json.loads((directory / "cleaning.json").read_text())
        assert [tally["step"] for tally in tallies] == ["perplexity", "quantile", "exact"]
        assert tallies[1]["note"].startswith("kept bits_per_byte from ") and tallies[1]["after"] == 18
        found.append({path.name: path.read_bytes() for path in directory.glob("*.tar")})
    assert found[0] == found[1] and found[0]
