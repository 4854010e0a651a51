"""What is counted of a corpus, against counting by hand; and tokens spelt one by one."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from data.config import DataError, TokenizerConfig
from data.documents import Documents
from data.manifest import Manifest
from data.orderings import METHODS, make
from data.spelling import bytes_of, spelling_of, texts_of
from data.statistics import describe, statistics
from data.tokenizers import Tokenizer, load_corpus_tokenizer, make_tokenizer

TEXTS = ["Ünïcode – €uro\n\tx = 1\r\n", "日本語のテキスト and 🙂🙃", "plain text of words " * 5, ""]


@pytest.fixture
def described(corpus_copy) -> tuple[Path, dict[str, list]]:
    """The corpus with columns: a language, a quality that some documents lack, a flag; and what the columns hold."""
    draw, manifest, columns = random.Random(0), Manifest.load(corpus_copy), {"language": [], "quality": [], "clean": []}
    shards = []
    for shard in manifest.splits["train"].shards:
        file = corpus_copy / shard.meta_file
        count = shard.documents
        own = {
            "language": [draw.choice(["en", "en", "de", None]) for _ in range(count)],
            "quality": [draw.choice([None, draw.random(), draw.random()]) for _ in range(count)],
            "clean": [draw.choice([True, False]) for _ in range(count)],
        }
        table = pq.read_table(file)
        for name, values in own.items():
            columns[name] += values
            table = table.append_column(name, pa.array(values))
        pq.write_table(table, file)
        body = file.read_bytes()
        shards.append(replace(shard, meta_size=len(body), meta_sha256=hashlib.sha256(body).hexdigest()))
    splits = {**manifest.splits, "train": replace(manifest.splits["train"], shards=tuple(shards))}
    kinds = {"language": "str", "quality": "float", "clean": "bool"}
    replace(manifest, splits=splits, columns=kinds).save(corpus_copy)
    return corpus_copy, columns


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
    corpus, columns = described
    documents = Documents(corpus)
    found = statistics(documents)
    known = [value for value in columns["quality"] if value is not None]
    quality = found["signals"]["quality"]
    assert quality["known"] == len(known) < len(documents) and quality["missing"] == len(documents) - len(known)
    assert quality["mean"] == pytest.approx(np.mean(known)) and sum(quality["counts"]) == len(known)
    counts, tokens, lengths = Counter(columns["language"]), Counter(), documents.lengths()
    for language, length in zip(columns["language"], lengths.tolist(), strict=True):
        tokens[language] += length
    language = found["words"]["language"]
    assert {one["value"]: (one["documents"], one["tokens"]) for one in language["most"]} == {
        name: (counts[name], tokens[name]) for name in ("en", "de")
    }
    assert language["missing"] == counts[None] and language["different"] == 2
    assert {one["value"]: one["documents"] for one in found["words"]["clean"]["most"]} == {
        str(value): count for value, count in Counter(columns["clean"]).items()
    }
    assert set(statistics(documents, ("quality",))["signals"]) == {"quality"}


def test_a_signal_is_a_difficulty(described):
    corpus, columns = described
    with pytest.raises(DataError, match="have no finite value; set --missing=last"):
        make(corpus, "hard", "difficulty", METHODS["difficulty"](column="quality"))
    found = make(corpus, "hard", "difficulty", METHODS["difficulty"](column="quality", missing="drop"))[0]
    values = [columns["quality"][number] for number in found.numbers("train")]
    assert values == sorted(value for value in columns["quality"] if value is not None)


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


def test_a_sentencepiece_model_is_spelt_piece_by_piece(tmp_path, documents):
    import sentencepiece

    path = tmp_path / "t.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents), model_writer=path.open("wb"), vocab_size=300, minloglevel=2,
        byte_fallback=True, hard_vocab_limit=False,
    )  # fmt: skip
    tokenizer = make_tokenizer(TokenizerConfig("file", path=str(path), special_tokens=("<new>",)), documents)
    assert "".join(spelt(tokenizer, "the model 日 reads")) == " the model 日 reads"
    assert spelling_of(tokenizer)(tokenizer.special("<new>")) == "<new>"


def test_bytes_that_are_no_text_are_written_as_such():
    assert texts_of([b"a", b"\xff", b"\xe2\x82", b"b", b"\xe2"]) == ["a", "⟨ff⟩", "", "⟨e2⟩⟨82⟩b", "⟨e2⟩"]
    assert texts_of([]) == []
