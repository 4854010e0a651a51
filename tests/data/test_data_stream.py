from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataError
from data.corpus import Corpus
from data.manifest import Manifest
from data.open import open_stream, ordered_stream
from data.stream import Stream, TokenStream, hash_of
from data.stream_config import BucketsConfig, DataConfig, SourceConfig
from tests.data.synthetic import EOD, document, write_corpus

LENGTHS = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=12), min_size=1, max_size=4)
METHODS = st.sampled_from(["cut", "best_fit", "document"])
SHUFFLES = st.sampled_from([("global", 16), ("window", 1), ("window", 3), ("none", 16)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("corpora")


def fresh(place: Path, shards: list[list[int]], **options: object) -> Path:
    """A new corpus of these lengths under the module's directory."""
    shutil.rmtree(place / "one", ignore_errors=True)
    return write_corpus(place / "one", shards, **options)


def stream_of(path: Path, seed: int = 1, length: int = 16, tokens: int = 10_000, **options: object) -> TokenStream:
    if options.get("shuffle", "global") != "window":
        options.pop("window", None)
    return open_stream(DataConfig(path=str(path), **options), seed, length=length, tokens=tokens, batch_tokens=64)


def targets(stream: TokenStream, place: int, rows: int, length: int) -> list[tuple[int, int]]:
    """(place on the corpus's line) of every token that rows predict, and how often."""
    found: Counter[int] = Counter()
    for row in range(rows):
        for piece in stream.pieces(place + row * length, length)[1]:
            found.update(range(piece.start, piece.start + piece.size))
    return sorted(found.items())


@settings(max_examples=60, deadline=None)
@given(LENGTHS, METHODS, SHUFFLES, st.integers(1, 3), st.sampled_from([8, 16]), st.integers(0, 99))
def test_every_token_is_predicted_once_an_epoch(place, shards, method, shuffle, blocks, length, seed):
    path = fresh(place, shards, block_tokens=20 * blocks)
    stream = stream_of(path, seed, length, packing=method, shuffle=shuffle[0], window=shuffle[1])
    source = stream.sources[0]
    line = np.concatenate([document(i, n) for i, n in enumerate(n for shard in shards for n in shard)])
    for epoch in (0, 2):
        begin = epoch * source.units * length
        found = targets(stream, begin, source.units, length)
        assert found == [(i, 1) for i in range(len(line))]
        samples = stream.batch(begin, source.units, length)
        assert samples.tokens.dtype == np.int64 and samples.weights.dtype == np.float32
        for row in range(source.units):
            filled = 0
            for piece in stream.pieces(begin + row * length, length)[1]:
                there = slice(piece.place, piece.place + piece.size)
                assert np.array_equal(samples.tokens[row, 1:][there], line[piece.start : piece.start + piece.size])
                continues = piece.start > 0 and line[piece.start - 1] != EOD
                before = samples.tokens[row, piece.place]
                if piece.place == 0:
                    assert before == (line[piece.start - 1] if continues else EOD)
                assert samples.weights[row, piece.place] == (0 if piece.place and continues and before == EOD else 1)
                assert (samples.weights[row, there][1:] == 1).all()
                filled = max(filled, piece.place + piece.size)
            assert (samples.tokens[row, 1 + filled :] == EOD).all() and (samples.weights[row, filled:] == 0).all()


@settings(max_examples=40, deadline=None)
@given(LENGTHS, METHODS, SHUFFLES, st.integers(0, 10**6), st.sampled_from([1, 2, 3, 6]), st.booleans())
def test_a_global_batch_is_the_same_however_it_is_divided(place, shards, method, shuffle, far, ranks, mixed):
    path = fresh(place, shards)
    options: dict = {"packing": method, "shuffle": shuffle[0], "window": shuffle[1]}
    if shuffle[0] != "window":
        options.pop("window")
    parts = (SourceConfig(str(path), "a", 0.7), SourceConfig(str(path), "b", 0.3)) if mixed else ()
    config = DataConfig(path=str(path), sources=parts, **options)
    first, again = (open_stream(config, 5, length=8, tokens=10**9) for _ in range(2))
    whole = first.batch(far * 8, 12, 8)
    size = 12 // ranks
    for rank in reversed(range(ranks)):  # whatever was read before
        part = again.batch(far * 8 + rank * size * 8, size, 8)
        assert np.array_equal(part.tokens, whole.tokens[rank * size : (rank + 1) * size])
        assert np.array_equal(part.weights, whole.weights[rank * size : (rank + 1) * size])
        assert np.array_equal(part.sources, whole.sources[rank * size : (rank + 1) * size])
    if method == "cut":  # shorter sequences read on in the same text
        halves = again.batch(far * 8, 24, 4) if first.unit % 4 == 0 else whole
        assert np.array_equal(halves.tokens[:, 1:].reshape(12, 8), whole.tokens[:, 1:])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.sampled_from([1, 4, 12]))
def test_a_ramp_or_any_other_batches_read_the_same_sequence(place, sizes, unit):
    path = fresh(place, [[30, 7, 64, 12], [50, 9]])
    stream = stream_of(path, 3, 8)
    rows = [stream.batch(8 * sum(sizes[:i]), size, 8).tokens for i, size in enumerate(sizes)]
    assert np.array_equal(np.concatenate(rows), stream.batch(0, sum(sizes), 8).tokens)


def test_epochs_differ_and_cut_elsewhere(place):
    path = fresh(place, [[100] * 20])
    stream = stream_of(path, 3)
    units = stream.sources[0].units
    first, second = (stream.batch(epoch * units * 16, units, 16).tokens for epoch in range(2))
    assert not np.array_equal(first, second)
    assert {row.tobytes() for row in first} != {row.tobytes() for row in second}


def test_orders_without_shuffle_stay_as_stored(place):
    path = fresh(place, [[100, 20], [30, 33]])
    stream = stream_of(path, 3, shuffle="none")
    line = np.concatenate([document(i, n) for i, n in enumerate([100, 20, 30, 33])])
    found = stream.batch(0, stream.sources[0].units, 16)
    assert np.array_equal(found.tokens[:, 1:][found.weights > 0], line)
    assert stream.fingerprint == stream_of(path, 4, shuffle="none").fingerprint


def test_windows_read_few_shards_at_a_time(place, monkeypatch):
    import data.source

    monkeypatch.setattr(data.source, "_CELL_UNITS", 1)
    path = fresh(place, [[100] * 5] * 12)
    stream = stream_of(path, 3, shuffle="window", window=3)
    source = stream.sources[0]
    starts = Corpus(path, "train").shard_starts
    seen = []
    for row in range(source.units):
        piece = stream.pieces(row * 16, 16)[1][0]
        seen.append(int(np.searchsorted(starts, piece.start, side="right")) - 1)
    per_window = source.units // 4
    for window in range(4):
        assert len(set(seen[window * per_window : (window + 1) * per_window])) == 3
    assert seen != sorted(seen)
    assert source.order.cells_at(0, 0)[:3] == list(dict.fromkeys(source.order.cells_at(0, per_window - 1)[:3]))


def test_far_samples_cost_what_the_first_one_costs(place, monkeypatch):
    """Arithmetic alone: as many reads of shards and as many numbers looked up at sample 10^10 as at sample 0."""
    path = fresh(place, [[100] * 50] * 3)
    calls: list[int] = []
    read = Corpus.read
    monkeypatch.setattr(Corpus, "read", lambda self, start, out: (calls.append(start), read(self, start, out))[1])
    looked_up = []
    for first in (0, 10**10):
        calls.clear()
        stream = stream_of(path, 3)
        stream.batch(first * 16, 8, 16)
        looked_up.append((len(calls) <= 16, len(stream._chunks)))
    assert looked_up == [(True, 1), (True, 1)]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=4),
    st.integers(0, 30),
)
def test_skipped_ranges_are_passed_over_and_nothing_else(place, gaps, start):
    path = fresh(place, [[64] * 20])
    skips, end = [], 0
    for gap, size in gaps:
        skips.append((end + gap * 16, end + (gap + size) * 16))
        end = skips[-1][1]
    plain, skipping = stream_of(path, 3), stream_of(path, 3, skip=tuple(skips))
    wanted = [row for row in range(300) if not any(a <= row * 16 < b for a, b in skips)][start : start + 40]
    expected = np.concatenate([plain.batch(row * 16, 1, 16).tokens for row in wanted])
    assert np.array_equal(skipping.batch(start * 16, 40, 16).tokens, expected)
    assert skipping.fingerprint == plain.fingerprint


@settings(max_examples=25, deadline=None)
@given(LENGTHS, st.sampled_from(["natural", "uniform", "grow_linear", "grow_p2", "shrink_p100"]), st.integers(1, 3))
def test_buckets_hold_pieces_of_single_documents(place, shards, curriculum, cycles):
    path = fresh(place, [[*shard, 64, 63] for shard in shards])
    buckets = BucketsConfig((8, 16, 32), curriculum, cycles if curriculum != "natural" else 1)
    stream = stream_of(path, 2, 32, tokens=64 * 30, buckets=buckets)
    total = sum(sum(shard) + 127 for shard in shards)
    covered = [sum(n for _, n in targets(inner, 0, inner.sources[0].units, inner.unit)) for inner in stream.streams]
    assert sum(covered) == total
    for step in range(30):
        length = stream.length_at(step * 64, 0)
        samples = stream.rows(step * 64 + np.arange(64 // length) * length, length)
        assert samples.tokens.shape == (64 // length, length + 1)
        ends = (samples.tokens[:, 1:] == EOD) & (samples.weights > 0)
        assert (ends.sum(1) <= 1).all()  # one document a row
    assert sum(stream.consumed(64 * 30)) == 64 * 30


def test_growing_curricula_begin_short_and_end_long(place):
    path = fresh(place, [[127] * 30])
    for name, ascending in (("grow_p100", True), ("shrink_p100", False)):
        stream = stream_of(path, 2, 64, tokens=64 * 40, buckets=BucketsConfig((8, 16, 32, 64), name))
        lengths = [stream.length_at(step * 64, 0) for step in range(40)]
        in_order = sorted(lengths, reverse=not ascending)
        assert len(set(lengths)) == 4
        assert sum(a != b for a, b in zip(lengths, in_order, strict=True)) <= 4  # odds of a hundred to one


def test_fingerprints_tell_streams_apart(place, tmp_path):
    path = fresh(place, [[30, 40, 50]])
    options = [{}, {"packing": "best_fit"}, {"shuffle": "window"}, {"shuffle": "window", "window": 2}]
    streams = [stream_of(path, **option) for option in options] + [stream_of(path, 2), stream_of(path, length=32)]
    streams += [
        open_stream(DataConfig(path=str(path)), 1, length=16, tokens=1, begin={streams[0].sources[0].fingerprint: 16})
    ]
    assert len({stream.fingerprint for stream in streams}) == len(streams)
    copy = shutil.copytree(path, tmp_path / "copy")
    assert stream_of(copy).fingerprint == streams[0].fingerprint


def test_phases_go_on_where_others_stopped(place):
    path = fresh(place, [[64] * 20])
    config = DataConfig(path=str(path))
    whole = open_stream(config, 1, length=16, tokens=1)
    short = open_stream(config, 1, length=8, tokens=1, longest=16)
    assert np.array_equal(short.batch(0, 10, 8).tokens[:, 1:].reshape(5, 16), whole.batch(0, 5, 16).tokens[:, 1:])
    used = {whole.sources[0].fingerprint: short.consumed(80)[0]}
    later = open_stream(config, 1, length=16, tokens=1, begin=used)
    assert np.array_equal(later.batch(0, 4, 16).tokens, whole.batch(80, 4, 16).tokens)


def test_validation_reads_a_split_in_order(byte_corpus):
    stream = ordered_stream(str(byte_corpus), "validation", 32)
    corpus = Corpus(byte_corpus, "validation")
    line = np.empty(corpus.tokens, np.int64)
    corpus.read(0, line)
    found = stream.batch(0, stream.sources[0].units, 32)
    assert np.array_equal(found.tokens[:, 1:][found.weights > 0], line)
    assert found.tokens[0, 0] == corpus.eod
    assert corpus.bytes_per_token == corpus.contents.bytes / corpus.tokens


def test_documents_are_found_by_number_and_place(place):
    lengths = [[5, 1, 30], [12, 90]]
    corpus = Corpus(fresh(place, lengths, block_tokens=20), "train")
    flat = [n for shard in lengths for n in shard]
    at = 0
    for number, size in enumerate(flat):
        assert corpus.place(number) == (at, size)
        assert np.array_equal(corpus.document(number), document(number, size))
        assert corpus.document_at(at) == (number, 0) and corpus.document_at(at + size - 1) == (number, size - 1)
        at += size
    assert np.array_equal(np.concatenate([corpus.lengths(shard) for shard in range(corpus.shards)]), flat)


def test_hash_is_of_values_and_shape():
    array = np.arange(6)
    assert hash_of(array) == hash_of(array.astype(np.uint16)) != hash_of(array.reshape(2, 3))
    assert hash_of(array) != hash_of(array + 1)


def test_the_sequence_outlives_releases(tmp_path):
    """Written down once: a change that moves it must raise ORDER_VERSION."""
    path = write_corpus(tmp_path / "corpus", [[30, 7, 64, 12], [50, 9, 200]])
    assert [hash_of(stream_of(path, 42, packing=m).batch(5000, 8, 16).tokens) for m in ("cut", "best_fit")] == PINNED


PINNED = ["cf1a29f47bfa2f5d", "9ea0abfb6cb1d3a2"]


def test_nothing_may_be_missing_or_changed(corpus_copy):
    shard = Manifest.load(corpus_copy).splits["train"].shards[0]
    (corpus_copy / shard.file).rename(corpus_copy / "gone")
    with pytest.raises(DataError, match=r"this part of the corpus is missing"):
        Corpus(corpus_copy, "train").check_present()
    (corpus_copy / "gone").rename(corpus_copy / shard.file)
    data = bytearray((corpus_copy / shard.file).read_bytes())
    data[1000] ^= 1
    (corpus_copy / shard.file).write_bytes(data)
    Corpus(corpus_copy, "train").check_present()
    with pytest.raises(DataError, match=r"its checksum is not the manifest's"):
        Corpus(corpus_copy, "train").verify()
    Corpus(corpus_copy, "validation").verify()
    with pytest.raises(DataError, match="no split 'test'"):
        Corpus(corpus_copy, "test")
    with pytest.raises(DataError, match="no corpus there"):
        Corpus(corpus_copy / "nowhere", "train")


def test_an_index_of_another_shard_is_refused(corpus_copy):
    first, second = Manifest.load(corpus_copy).splits["train"].shards[:2]
    shutil.copy(corpus_copy / second.index_file, corpus_copy / first.index_file)
    with pytest.raises(DataError, match=r"its checksum is not the manifest's"):
        Corpus(corpus_copy, "train").check_present()


def test_threads_may_share_a_stream(byte_corpus):
    from concurrent.futures import ThreadPoolExecutor

    stream = stream_of(byte_corpus, 1, 16)
    assert isinstance(stream, Stream)
    wanted = [stream.batch(place * 16, 4, 16).tokens for place in range(0, 4000, 4)]
    again = stream_of(byte_corpus, 1, 16)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda place: again.batch(place * 16, 4, 16).tokens, range(0, 4000, 4)))
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
