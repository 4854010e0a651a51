"""Cleaning steps within a build: counts, samples, columns, and the same corpus however the work is shared out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import data.build.work as work_module
from data.build import build
from data.config import CorpusConfig, TokenizerConfig
from data.manifest import Manifest
from data.shards import Blocks, read_columns
from data.tokenizers import load_corpus_tokenizer

STEPS = (
    {"step": "unicode"},
    {"step": "exact"},
    {"step": "signals"},
    {"step": "filter", "where": "word_count > 3"},
    {"step": "minhash", "threshold": 0.8},
)


@pytest.fixture(scope="module")
def source(tmp_path_factory, documents) -> Path:
    """Documents of which some are broken, some short, some copies and some near copies of one far away."""
    near = [text + " at the end" for text in documents[::10] if len(text) > 800]
    texts = [
        *documents[:60],
        "caf\u00c3\u00a9 is broken and long enough",
        "two words",
        *documents[:20],
        *documents[60:],
        *near,
    ]
    path = tmp_path_factory.mktemp("clean") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "number": number}) for number, text in enumerate(texts)))
    return path


def built(directory: Path, source: Path, part_bytes: int, workers: int = 1, **options) -> Manifest:
    corpus = CorpusConfig(
        "clean",
        (str(source),),
        str(directory),
        clean=STEPS,
        validation_fraction=0.2,
        part_bytes=part_bytes,
        workers=workers,
    )
    found = build(corpus, TokenizerConfig("bpe", 300), **options)
    assert found is not None
    return found


def rows_of(directory: Path) -> list[tuple[str, int, float]]:
    """(text, number, words) of every document."""
    manifest, tokenizer = Manifest.load(directory), load_corpus_tokenizer(directory)
    found = []
    for split in manifest.splits.values():
        blocks = Blocks(directory, split, manifest.dtype)
        texts = [
            tokenizer.decode(document[:-1])
            for block in range(len(blocks))
            for document in np.split(blocks.tokens(block), blocks.ends(block))[:-1]
        ]
        columns = [read_columns(directory, shard, ["number", "word_count"]) for shard in split.shards]
        numbers, words = (np.concatenate([rows[name] for rows in columns]) for name in ("number", "word_count"))
        found += list(zip(texts, numbers.tolist(), words.tolist(), strict=True))
    return sorted(found)


def test_steps_are_counted_sampled_and_carried_out(tmp_path, source, documents):
    manifest = built(tmp_path / "corpus", source, 0)
    rows = rows_of(tmp_path / "corpus")
    texts = {text for text, _, _ in rows}
    assert "caf\u00e9 is broken and long enough" in texts and "two words" not in texts
    assert len(texts) == len(rows) and not any(text.endswith(" at the end") for text in texts)
    assert {text: words for text, _, words in rows}["caf\u00e9 is broken and long enough"] == 6
    lines = source.read_text().count("\n") + 1
    assert [step["step"] for step in manifest.cleaning] == [step["step"] for step in STEPS]
    assert manifest.cleaning[0]["before"] == lines and manifest.cleaning[-1]["after"] == len(rows)
    for one, other in zip(manifest.cleaning, manifest.cleaning[1:], strict=False):
        assert one["after"] == other["before"]
    tallies = {tally["step"]: tally for tally in json.loads((tmp_path / "corpus" / "cleaning.json").read_text())}
    assert sum(tallies["exact"]["reasons"].values()) == 20 and tallies["unicode"]["changed"] == 1
    assert "two words" in [sample["text"] for sample in tallies["filter"]["samples"]]
    assert manifest.columns["number"] == "int" and "word_count" in manifest.columns


def test_the_same_is_kept_however_the_work_is_shared_out(tmp_path, source, monkeypatch):
    monkeypatch.setattr(work_module, "IN_PROCESS_BYTES", 0)
    one = built(tmp_path / "one", source, 0)
    many = built(tmp_path / "many", source, 9000)
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "many") and one.cleaning == many.cleaning
    cleaning = (tmp_path / "one" / "cleaning.json").read_text()
    assert len(many.splits["train"].shards) > 5
    built(tmp_path / "workers", source, 9000, workers=3)
    for file in (tmp_path / "many").rglob("*.*"):
        assert (tmp_path / "workers" / file.relative_to(tmp_path / "many")).read_bytes() == file.read_bytes()
    places = [
        [(step["step"], step["before"], step["after"], step["reasons"]) for step in json.loads(text)]
        for text in (cleaning, (tmp_path / "many" / "cleaning.json").read_text())
    ]
    assert places[0] == places[1]


@pytest.mark.parametrize("note", ["cleaning, pass 2", "deciding over all documents", "encoding"])
def test_an_interrupted_build_that_cleans_goes_on(tmp_path, source, note):
    seen: list[str] = []

    def interrupt(done: int, total: int, said: str, tokens: int) -> None:
        seen.append(said)
        if said == note and seen.count(note) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "corpus", source, 20_000, progress=interrupt)
    built(tmp_path / "corpus", source, 20_000, progress=lambda done, total, said, tokens: seen.append(f"again {said}"))
    assert "again reading" not in seen
    built(tmp_path / "straight", source, 20_000)
    assert rows_of(tmp_path / "corpus") == rows_of(tmp_path / "straight")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("corpus", "straight")]
    assert manifests[0] == manifests[1]
