"""What is counted of a corpus, against counting by hand; and tokens spelt one by one."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from data.config import DataError, TokenizerConfig
from data.documents import Documents
from data.spelling import bytes_of, spelling_of, texts_of
from data.statistics import describe, statistics
from data.tokenizers import Tokenizer, load_corpus_tokenizer

TEXTS = ["Ünïcode – €uro\n\tx = 1\r\n", "日本語のテキスト and 🙂🙃", "plain text of words " * 5, ""]


@pytest.fixture(scope="module")
def described(tmp_path_factory, build_small) -> tuple[Path, list[dict]]:
    """Documents of two files with a language, a quality that some lack, and a flag."""
    place = tmp_path_factory.mktemp("described")
    draw = random.Random(0)
    records = []
    for number in range(200):
        record = {"text": f"{number} " + "ab cd " * draw.randint(1, 60), "language": draw.choice(["en", "en", "de"])}
        if number % 4:
            record["quality"] = draw.random()
        records.append(record | {"clean": bool(number % 2)})
    for name, part in (("one", records[:50]), ("two", records[50:])):
        (place / f"{name}.jsonl").write_text("\n".join(json.dumps(record) for record in part))
    corpus = tmp_path_factory.mktemp("corpora") / "described"
    build_small(corpus, sources=(str(place / "one.jsonl"), str(place / "two.jsonl")))
    return corpus, records


def test_figures_are_those_of_counting(byte_corpus):
    documents = Documents(byte_corpus)
    found = statistics(documents)
    texts = [documents.document(number) for number in range(len(documents))]
    lengths = np.array([len(text) for text in texts])
    assert found["documents"] == len(texts) and found["tokens"] == lengths.sum()
    assert found["lengths"]["quantiles"]["0.5"] == np.median(lengths)
    assert sum(found["lengths"]["counts"]) == len(texts) and sum(found["lengths"]["weights"]) == lengths.sum()
    assert found["lengths"]["mean"] == pytest.approx(lengths.mean())
    counted = Counter(np.concatenate(texts).tolist())
    frequencies = found["frequencies"]
    assert frequencies["counted"] == lengths.sum() and frequencies["vocabulary"] == 257
    assert frequencies["never_used"] == 257 - len(counted)
    assert [one["count"] for one in frequencies["most"]] == [count for _, count in counted.most_common(20)]
    shares = np.array([*counted.values()]) / lengths.sum()
    assert frequencies["entropy"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert frequencies["curve"][0] == max(counted.values()) and frequencies["ranks"][-1] == len(counted)
    (source,) = found["sources"]
    assert source["tokens"] == lengths.sum() and source["bytes_per_token"] == pytest.approx(
        documents.bytes / lengths.sum()
    )
    json.dumps(found)


def test_columns_of_any_kind(described):
    corpus, records = described
    documents = Documents(corpus)
    known = set(documents.columns())
    if not {"language", "quality", "clean"} <= known:
        pytest.skip("this build keeps no columns of the user's")
    found = statistics(documents)
    rows, (paths, files) = documents.numbers("row").astype(int), documents.labels("path")
    mine = [records[row + (50 if "two" in files[path] else 0)] for row, path in zip(rows, paths, strict=True)]
    qualities = [record["quality"] for record in mine if "quality" in record]
    quality = found["signals"]["quality"]
    assert quality["known"] == len(qualities) and quality["missing"] == len(mine) - len(qualities)
    assert quality["mean"] == pytest.approx(np.mean(qualities)) and sum(quality["counts"]) == len(qualities)
    languages = Counter(record["language"] for record in mine)
    assert {one["value"]: one["documents"] for one in found["words"]["language"]["most"]} == languages
    assert sum(one["tokens"] for one in found["words"]["language"]["most"]) == documents.tokens
    assert {one["value"]: one["documents"] for one in found["words"]["clean"]["most"]}["true"] == sum(
        record["clean"] for record in mine
    )
    assert set(statistics(documents, ("quality",))["signals"]) == {"quality"}


def test_a_column_that_is_not_there(byte_corpus):
    with pytest.raises(DataError, match="--columns=sweetness: no such column; choose among source"):
        statistics(Documents(byte_corpus), ("sweetness",))


def test_frequencies_of_a_part_come_from_all_over(byte_corpus):
    documents = Documents(byte_corpus)
    part = statistics(documents, most_tokens=documents.tokens // 4)["frequencies"]
    assert 0.1 < part["counted"] / documents.tokens < 0.5


def test_histograms_of_any_values():
    assert describe(np.array([np.nan, np.inf])) == {"known": 0, "missing": 2}
    same = describe(np.full(7, 3.5))
    assert same["counts"] == [7] and same["edges"] == [3.0, 4.0]
    whole = describe(np.array([1.0, 2, 2, 5]))
    assert whole["edges"] == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5] and whole["counts"] == [1, 2, 0, 0, 1]
    lengths = describe(np.arange(1.0, 5000), logarithmic=True)
    assert sum(lengths["counts"]) == 4999 and lengths["edges"][0] == 0.5
    one = describe(np.ones(3), logarithmic=True)
    assert sum(one["counts"]) == 3


def spelt(tokenizer: Tokenizer, text: str) -> list[str]:
    spell = bytes_of(tokenizer)
    return texts_of([spell(id_) for id_ in tokenizer.encode(text).tolist()])


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_tokens_add_up_to_the_text(kind, build_small, tmp_path, byte_corpus):
    if kind == "bpe":
        build_small(tmp_path / "bpe", TokenizerConfig("bpe", 270))
    tokenizer = load_corpus_tokenizer(tmp_path / "bpe" if kind == "bpe" else byte_corpus)
    for text in TEXTS:
        parts = spelt(tokenizer, text)
        assert "".join(parts) == text and len(parts) == len(tokenizer.encode(text))
    assert spelt(tokenizer, "日")[:2] == ["", ""], "a character stands at its last byte"
    assert spelling_of(tokenizer)(tokenizer.eod) == "<|endoftext|>"


def test_sentencepiece_spellings():
    vocabulary = {"<|endoftext|>": 0, "▁the": 1, "re": 2, "<0xE2>": 3, "<0x82>": 4, "<0xAC>": 5}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    model.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    spell = bytes_of(Tokenizer("file", model.to_str()))
    assert texts_of([spell(id_) for id_ in (1, 2, 3, 4, 5)]) == [" the", "re", "", "", "€"]
    shown = spelling_of(Tokenizer("file", model.to_str()))
    assert shown(1) == "␣the" and shown(3) == "⟨e2⟩"


def test_bytes_that_are_no_text_are_written_as_such():
    assert texts_of([b"a", b"\xff", b"\xe2\x82", b"b", b"\xe2"]) == ["a", "⟨ff⟩", "", "⟨e2⟩⟨82⟩b", "⟨e2⟩"]
    assert texts_of([]) == []
