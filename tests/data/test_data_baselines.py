from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import baselines
from data.corpus import Corpus
from data.manifest import Manifest
from data.shards import Blocks


def opened(directory: Path) -> tuple[Blocks, Blocks, Manifest]:
    manifest = Manifest.load(directory)
    train, validation = (Blocks(directory, manifest.splits[name], manifest.dtype) for name in ("train", "validation"))
    return train, validation, manifest


def line(corpus: Corpus) -> list[int]:
    out = np.empty(corpus.tokens, np.int64)
    corpus.read(0, out)
    return out.tolist()


def counted_by_hand(directory: Path) -> tuple[float, float]:
    """Unigram and bigram cross-entropy with dictionaries, given the weights that were found."""
    train, validation = (Corpus(directory, name) for name in ("train", "validation"))
    assert train.manifest.baselines is not None
    weights = train.manifest.baselines.bigram_weights
    text = line(train)
    single, first = Counter(text), Counter([train.eod, *text[:-1]])
    pairs = Counter(zip([train.eod, *text[:-1]], text, strict=True))
    unigram = bigram = 0.0
    before = validation.eod
    for token in line(validation):
        alone = (single[token] + 1) / (len(text) + train.vocab_size)
        after = pairs[before, token] / max(first[before], 1)
        weight = weights[int(math.log2(max(first[before], 1)))]
        unigram -= math.log(alone)
        bigram -= math.log(weight * after + (1 - weight) * alone)
        before = token
    return unigram / validation.tokens, bigram / validation.tokens


def test_they_equal_a_count_by_hand(byte_corpus):
    found = Manifest.load(byte_corpus).baselines
    unigram, bigram = counted_by_hand(byte_corpus)
    assert found.unigram == pytest.approx(unigram, abs=1e-5)
    assert found.bigram == pytest.approx(bigram, abs=1e-5)
    assert found.train_tokens == Manifest.load(byte_corpus).splits["train"].tokens


def test_large_vocabularies_give_the_same(byte_corpus, monkeypatch):
    train, validation, manifest = opened(byte_corpus)
    monkeypatch.setattr(baselines, "_DENSE_PAIRS", 0)
    monkeypatch.setattr(baselines, "_CHUNK_TOKENS", 10000)
    assert baselines.compute(train, validation, 257, 256) == manifest.baselines


def test_part_of_a_large_corpus_is_counted(byte_corpus, monkeypatch):
    train, validation, manifest = opened(byte_corpus)
    monkeypatch.setattr(baselines, "TRAIN_TOKENS", manifest.splits["train"].tokens // 3)
    found = baselines.compute(train, validation, 257, 256)
    assert 0.2 < found.train_tokens / manifest.splits["train"].tokens < 0.5
    assert found.bigram == pytest.approx(manifest.baselines.bigram, abs=0.1)


def write_texts(directory: Path, texts: list[str]) -> str:
    directory.mkdir()
    for i, text in enumerate(texts):
        (directory / f"{i}.txt").write_text(text)
    return str(directory)


def test_known_entropies(tmp_path, build_small):
    draw = random.Random(1)
    # Independent letters of a uniform alphabet of 16: both are log 16. Each letter decides the next: the bigram is ~0.
    random_texts = ["".join(draw.choices("abcdefghijklmnop", k=4000)) for _ in range(30)]
    cycle = "abcdefghijklmnop" * 250
    for name, texts, unigram, bigram in [
        ("random", random_texts, math.log(16), math.log(16)),
        ("cycle", [cycle[i:] + cycle[:i] + "a" * (i // 16) for i in range(1, 40)], math.log(16), 0.0),
    ]:
        manifest = build_small(tmp_path / name, sources=(write_texts(tmp_path / f"{name}-text", texts),))
        assert manifest.baselines.unigram == pytest.approx(unigram, abs=0.03)
        assert manifest.baselines.bigram == pytest.approx(bigram, abs=0.03)


def test_weights_were_chosen_without_the_counted_documents(tmp_path, build_small):
    # Noise over many letters: the counts of a pair say nothing about other documents, so little weight is given to
    # them. Weights fitted to the same documents would be near 1, and the bigram far above the unigram.
    draw = random.Random(2)
    letters = [chr(code) for code in range(33, 127)]
    texts = ["".join(draw.choices(letters, k=300)) for _ in range(40)]
    manifest = build_small(tmp_path / "corpus", sources=(write_texts(tmp_path / "text", texts),))
    assert max(weight for weight in manifest.baselines.bigram_weights if weight != 0.5) < 0.3
    assert manifest.baselines.bigram == pytest.approx(manifest.baselines.unigram, abs=0.05)
