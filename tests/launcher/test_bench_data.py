"""The bench of loaders: what every loader shares, the corpus, refusals, and all of it with few tokens. Asserts no speed."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from data.corpus import Corpus
from launcher.bench import data as bench
from launcher.bench.data_arena import MEAN, document_lengths, make, make_many
from launcher.bench.data_peers import PEERS, Documents
from launcher.bench.data_rows import LENGTH, ROWS, batched, check, packed
from launcher.bench.data_show import draw, show
from launcher.compose import build_recipe, compose_tree
from tests.launcher.test_bench import minute_model

TOKENS = 400_000
WEBDATASET = [name for name in PEERS if name.startswith("webdataset")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("arena")
    disk = make(place, TOKENS, seed=1)
    make_many(place, 30)
    (place / "disk.json").write_text(json.dumps({"tokens": TOKENS, "disk": disk}))
    assert 1 < disk["block shards"] < 1.05 < 1.5 < disk["tars, a document a member"]
    return place


def test_lengths_are_lognormal() -> None:
    lengths = document_lengths(10**7, seed=1)
    assert 10**7 <= lengths.sum() < 10**7 + lengths.max() and lengths.min() >= 2
    assert abs(lengths.mean() / MEAN - 1) < 0.05
    logarithms = np.log(lengths[lengths > 10])
    assert abs(logarithms.std() - 1) < 0.05 and abs(np.median(logarithms) - logarithms.mean()) < 0.05
    assert np.array_equal(lengths, document_lengths(10**7, seed=1))


def test_every_form_holds_the_same_documents(place: Path) -> None:
    documents = [document.astype(np.int64).tobytes() for document in Documents(place)]
    assert len(set(documents)) == len(documents) > 300
    for name in ("blocks", "index"):
        found = []
        for split in ("train", "validation"):
            corpus = Corpus(place / name, split)
            found += [corpus.document(number).tobytes() for number in range(corpus.documents)]
        assert sorted(found) == sorted(documents)
    many = Corpus(place / "many", "train")
    assert many.tokens == 30 * Corpus(place / "blocks", "train").tokens


def test_rows_hold_all_tokens_in_order() -> None:
    documents = [np.arange(start, start + 3000) for start in range(0, 90_000, 3000)]
    rows = list(packed(documents))
    assert np.array_equal(np.concatenate(rows), np.arange(len(rows) * (LENGTH + 1)))
    batches = list(batched(rows))
    assert len(batches) == len(rows) // ROWS
    for batch in batches:
        check(batch)
    assert torch.equal(batches[0][0][1], torch.from_numpy(rows[1][:-1]))


def test_a_bench_of_few_tokens_has_every_figure(place: Path, tmp_path: Path) -> None:
    recipe = build_recipe(compose_tree(minute_model(tmp_path)))
    figures = bench.run(
        recipe, python=sys.executable, only=WEBDATASET[1:], tokens=TOKENS, rounds=2, batches=2, long=3, keep=str(place)
    )
    assert list(figures["loaders"]) == ["Triaxis", "Triaxis, a document a member", WEBDATASET[1]]
    for one in figures["loaders"].values():
        assert one["tokens_per_second"] > 0 and one["tokens_per_core_second"] > 0 and one["first_batch"] > 0
        assert one["peak"] > one["own"] > 0 and one["ours_is"]["low"] <= one["ours_is"]["median"]
    assert set(figures["resume"]["seconds"]) == {"0", "1000000", "10000000000"}
    assert 0 <= figures["waiting"]["median"] <= figures["waiting"]["worst"] <= 1
    told = json.loads(json.dumps(figures)) | {"absent": ["litdata"]}
    screen = io.StringIO()
    show(told, Console(file=screen, width=140))
    assert "Waiting for data" in screen.getvalue() and "not installed, left out: litdata" in screen.getvalue()
    assert draw(figures)[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_cannot_be_compared_is_refused(place: Path, tmp_path: Path) -> None:
    for flags, message in (
        (["--rounds", "1"], "at least 2 rounds of 2 batches"),
        (["--only", "nobody", "--keep", str(place), "--tokens", str(TOKENS)], "--only 'nobody': no such loader"),
        (["--keep", str(place), "--tokens", "7"], f"holds {TOKENS} tokens, not --tokens 7"),
        (["--peers", "/nowhere/python", "--keep", str(place), "--tokens", str(TOKENS)], "no Python interpreter"),
    ):
        with pytest.raises(ValueError, match=message):
            bench.main([*minute_model(tmp_path), *flags])


def test_peers_that_are_not_installed_are_told() -> None:
    found, absent = bench._installed(sys.executable, [])
    assert set(found) | set(absent) == set(PEERS) and set(WEBDATASET) <= set(found)
