from __future__ import annotations

import random

import numpy as np
import pytest

from data.config import DataError, TokenizerConfig
from data.manifest import Manifest
from data.stream import Stream, hash_of

SPANS = [0, 7, 64, 2048, 10**9]


def split_documents(tokens: np.ndarray, eod: int) -> list[bytes]:
    return [part.tobytes() for part in np.split(tokens, np.flatnonzero(tokens == eod) + 1)[:-1]]


def stored(corpus) -> np.ndarray:
    """All training tokens in the order they are stored."""
    blocks = Stream(corpus, "train", 0)._blocks
    return np.concatenate([blocks.tokens(block) for block in range(len(blocks))]).astype(np.int64)


def test_an_epoch_is_every_document_once(byte_corpus):
    stream = Stream(byte_corpus, "train", 3, span_tokens=0)
    wanted = sorted(split_documents(stored(byte_corpus), stream.eod))
    assert len(wanted) == Manifest.load(byte_corpus).splits["train"].documents > 50
    orders = []
    for epoch in range(3):
        found = split_documents(stream.tokens(epoch * stream.tokens_per_epoch, stream.tokens_per_epoch), stream.eod)
        assert sorted(found) == wanted
        orders.append(found)
    assert orders[0] != orders[1] != orders[2]


def test_documents_move_within_and_between_blocks(byte_corpus):
    stream = Stream(byte_corpus, "train", 3, span_tokens=0)
    place = {document: i for i, document in enumerate(split_documents(stored(byte_corpus), stream.eod))}
    found = [place[document] for document in split_documents(stream.tokens(0, stream.tokens_per_epoch), stream.eod)]
    steps = np.diff(found)
    assert (steps == 1).mean() < 0.5 and (steps < 0).mean() > 0.2
    assert np.abs(found - np.arange(len(found))).max() > len(found) / 2


@pytest.mark.parametrize("span", SPANS)
def test_an_epoch_is_every_span_of_the_text_once(byte_corpus, span):
    text = Stream(byte_corpus, "train", 3, span_tokens=0)
    stream = Stream(byte_corpus, "train", 3, span_tokens=span)
    size = stream.tokens_per_epoch
    for epoch in (0, 2):
        plain, shuffled = text.tokens(epoch * size, size), stream.tokens(epoch * size, size)
        cuts = np.arange(span, size, span) if span else []
        parts, wanted = np.split(shuffled, cuts), np.split(plain, cuts)
        assert sorted(part.tobytes() for part in parts) == sorted(part.tobytes() for part in wanted)
        if len(wanted) > 20:
            assert sum(np.array_equal(a, b) for a, b in zip(parts, wanted, strict=True)) < len(wanted) / 4


@pytest.mark.parametrize("span", SPANS)
def test_any_read_equals_a_part_of_a_long_read(byte_corpus, span):
    stream = Stream(byte_corpus, "train", 1, span_tokens=span)
    size = stream.tokens_per_epoch
    whole = np.concatenate([stream.tokens(start, min(999, 2 * size - start)) for start in range(0, 2 * size, 999)])
    fresh = Stream(byte_corpus, "train", 1, span_tokens=span)
    draw = random.Random(span)
    places = [(size - 5, 10), (size, 1), (0, 0), (2 * size - 1, 1), (0, 2 * size)]
    places += [(draw.randrange(2 * size - 600), draw.randrange(600)) for _ in range(60)]
    for start, count in places:
        found = fresh.tokens(start, count)
        assert found.dtype == np.int64 and np.array_equal(found, whole[start : start + count])


def test_far_positions_are_as_near_as_the_first(byte_corpus):
    stream = Stream(byte_corpus, "train", 1)
    far = 10**9 * stream.tokens_per_epoch
    there = stream.tokens(far + 17, 100)
    assert np.array_equal(there[50:], stream.tokens(far + 67, 50))
    assert not np.array_equal(there, stream.tokens(17, 100))


@pytest.mark.parametrize("span", [0, 32, 50, 2048])
def test_batches_are_the_same_however_they_are_divided(byte_corpus, span):
    stream = Stream(byte_corpus, "train", 5, span_tokens=span)
    start = stream.tokens_per_epoch - 100  # across an epoch's end
    whole = stream.batch(start, 12, 32)
    assert whole.shape == (12, 33) and whole.dtype == np.int64
    for processes in (2, 3, 4, 12):
        rows = 12 // processes
        parts = [stream.batch(start + rank * rows * 32, rows, 32) for rank in range(processes)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(whole[:, :-1].reshape(-1), stream.tokens(start, 12 * 32))


@pytest.mark.parametrize("ordered", [True, False])
def test_without_spans_rows_overlap_by_one(byte_corpus, ordered):
    stream = Stream(byte_corpus, "train", 5, ordered=ordered, span_tokens=0)
    for start in (0, 1000, stream.tokens_per_epoch - 40):
        batch = stream.batch(start, 4, 20)
        for row in range(4):
            assert np.array_equal(batch[row], stream.tokens(start + 20 * row, 21))


def test_rows_within_spans_are_whole_windows_of_the_text(byte_corpus):
    text = Stream(byte_corpus, "train", 5, span_tokens=0)
    stream = Stream(byte_corpus, "train", 5, span_tokens=64)
    rows = stream.tokens_per_epoch // 64 * 2
    plain = text.tokens(0, stream.tokens_per_epoch + 1)
    wanted = sorted(plain[i * 32 : i * 32 + 33].tobytes() for i in range(rows))
    assert sorted(row.tobytes() for row in stream.batch(0, rows, 32)) == wanted


def test_the_last_token_of_an_epoch_is_followed_by_the_next_epochs_text(byte_corpus):
    for span in (0, 64):
        stream = Stream(byte_corpus, "train", 5, span_tokens=span)
        text = Stream(byte_corpus, "train", 5, span_tokens=0)
        size = stream.tokens_per_epoch
        row = stream.batch(size - 8, 1, 8)[0]
        assert row[-2] == stream.eod and row[-1] == text.tokens(size, 1)[0]


def test_seeds_change_the_order_and_nothing_else_does(byte_corpus):
    first, again, other = (Stream(byte_corpus, "train", seed) for seed in (0, 0, 1))
    assert np.array_equal(first.batch(64, 4, 64), again.batch(64, 4, 64))
    assert not np.array_equal(first.batch(64, 4, 64), other.batch(64, 4, 64))
    assert first.fingerprint == again.fingerprint
    streams = [first, other, Stream(byte_corpus, "train", 0, span_tokens=64), Stream(byte_corpus, "validation", 0)]
    assert len({stream.fingerprint for stream in streams}) == 4


def test_ordered_streams_are_the_stored_text_every_epoch(byte_corpus):
    stream = Stream(byte_corpus, "train", 9, ordered=True)
    text = stored(byte_corpus)
    assert np.array_equal(stream.tokens(0, 2 * len(text)), np.concatenate([text, text]))
    assert stream.fingerprint == Stream(byte_corpus, "train", 10, ordered=True).fingerprint


def test_facts_about_the_split(byte_corpus):
    stream = Stream(byte_corpus, "validation", 0)
    split = Manifest.load(byte_corpus).splits["validation"]
    assert stream.tokens_per_epoch == split.tokens == split.bytes + split.documents
    assert stream.bytes_per_token == split.bytes / split.tokens
    assert (stream.vocab_size, stream.eod) == (257, 256)


def test_the_sequence_outlives_releases(tmp_path, build_small):
    """Written down once: a change here moves the data of every run, and must raise ORDER_VERSION."""
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i:02d}.txt").write_text(f"{i} is a number; " * (i + 3))
    build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),), block_tokens=500, shard_tokens=2000)
    assert hash_of(Stream(tmp_path / "corpus", "train", 42, span_tokens=0).batch(5000, 8, 32)) == PINNED[0]
    assert hash_of(Stream(tmp_path / "corpus", "train", 42, span_tokens=64).batch(5000, 8, 32)) == PINNED[1]


PINNED = ("bc6766b11de4338b", "829e397fdc1e81ac")


def test_hashes_tell_arrays_apart():
    array = np.arange(6)
    assert hash_of(array) == hash_of(array.astype(np.int32)) == hash_of(np.arange(12)[::2] // 2)
    assert len({hash_of(array), hash_of(array.reshape(2, 3)), hash_of(array[::-1]), hash_of(array[:5])}) == 4


def test_four_byte_tokens(tmp_path, build_small, byte_corpus, monkeypatch):
    monkeypatch.setattr("data.tokenizers.Tokenizer.dtype", np.dtype(np.uint32))
    assert build_small(tmp_path / "corpus").dtype == "uint32"
    wide, narrow = (Stream(corpus, "train", 4) for corpus in (tmp_path / "corpus", byte_corpus))
    assert np.array_equal(wide.batch(100, 8, 64), narrow.batch(100, 8, 64))


def test_few_shards_open_at_a_time(byte_corpus, monkeypatch):
    wanted = Stream(byte_corpus, "train", 0).tokens(0, 20000)
    monkeypatch.setattr("data.shards.OPEN_SHARDS", 1)
    stream = Stream(byte_corpus, "train", 0)
    assert np.array_equal(stream.tokens(0, 20000), wanted)
    assert len(stream._blocks._maps) == 1


def test_no_corpus_there(tmp_path):
    with pytest.raises(DataError, match=r"no corpus there.*triaxis data build"):
        Stream(tmp_path, "train", 0)


def test_no_such_split(byte_corpus):
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        Stream(byte_corpus, "test", 0)


def test_missing_parts_are_named(corpus_copy):
    for name in ("train-00000-0001.tar", "train-00000-0002.idx.json"):
        hidden = (corpus_copy / name).rename(corpus_copy / "hidden")
        with pytest.raises(DataError, match=f"{name}: this part of the corpus is missing"):
            Stream(corpus_copy, "train", 0)
        hidden.rename(corpus_copy / name)
    Stream(corpus_copy, "train", 0)


def test_truncated_shard_is_named(corpus_copy, build_small):
    shard = corpus_copy / "train-00000-0001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"train-00000-0001.tar: \d+ bytes, but the manifest says"):
        Stream(corpus_copy, "train", 0)
    with pytest.raises(DataError, match="train-00000-0001.tar"):
        build_small(corpus_copy)


def test_one_flipped_bit_is_found_by_verify(corpus_copy):
    Stream(corpus_copy, "train", 0).verify()
    shard = corpus_copy / "train-00000-0002.tar"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    stream = Stream(corpus_copy, "train", 0)
    with pytest.raises(DataError, match="train-00000-0002.tar: its checksum"):
        stream.verify()
    Stream(corpus_copy, "validation", 0).verify()


def test_changed_index_is_named(corpus_copy):
    index = corpus_copy / "train-00000-0000.idx.json"
    index.write_text(index.read_text().replace("1", "2", 1))
    with pytest.raises(DataError, match="train-00000-0000.idx.json: its checksum"):
        Stream(corpus_copy, "train", 0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"eod": 256', '"eod": 255', "was changed"),
        ('"format": 2', '"format": 9', "format 9, this version reads"),
        ("}\n", "", "cannot be read"),
    ],
)
def test_damaged_manifest_is_refused(corpus_copy, old, new, message):
    manifest = corpus_copy / "manifest.json"
    text = manifest.read_text()
    assert old in text
    manifest.write_text(new.join(text.rsplit(old, 1) if old == "}\n" else text.split(old, 1)))
    with pytest.raises(DataError, match=message):
        Stream(corpus_copy, "train", 0)


def test_bpe_corpus_decodes_to_the_documents(tmp_path, build_small, documents):
    from data.tokenizers import load_corpus_tokenizer

    build_small(tmp_path / "corpus", TokenizerConfig("bpe", 320))
    stream, tokenizer = (
        Stream(tmp_path / "corpus", "train", 0, span_tokens=0),
        load_corpus_tokenizer(tmp_path / "corpus"),
    )
    texts = tokenizer.decode(stream.tokens(0, stream.tokens_per_epoch)).split("<|endoftext|>")
    assert texts.pop() == ""
    assert set(texts) < set(documents) and len(texts) == stream.manifest.splits["train"].documents
