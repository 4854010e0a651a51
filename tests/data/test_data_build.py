from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.build.run as build_module
import data.build.settle as settle_module
import data.build.work as work_module
from data.build import build
from data.build.plan import differences, spec_of
from data.config import CorpusConfig, DataError, TokenizerConfig
from data.inspect import describe
from data.manifest import Manifest
from data.shards import Blocks
from data.tokenizers import load_corpus_tokenizer


def contents(directory: Path) -> dict[str, str]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def texts_of(directory: Path, split: str) -> list[str]:
    """The documents of a split as text, read back from the shards."""
    manifest, tokenizer = Manifest.load(directory), load_corpus_tokenizer(directory)
    blocks = Blocks(directory, manifest.splits[split], manifest.dtype)
    found = []
    for block in range(len(blocks)):
        for document in np.split(blocks.tokens(block), blocks.ends(block))[:-1]:
            assert document[-1] == tokenizer.eod
            found.append(tokenizer.decode(document[:-1]))
    return found


def test_shards_hold_every_document_once(byte_corpus, documents):
    train, validation = texts_of(byte_corpus, "train"), texts_of(byte_corpus, "validation")
    assert sorted(train + validation) == sorted(documents)
    assert len(validation) > 5 and len(train) > len(validation)
    manifest = Manifest.load(byte_corpus)
    for split, texts in (("train", train), ("validation", validation)):
        totals = manifest.splits[split]
        assert totals.documents == len(texts)
        assert totals.bytes == sum(len(text.encode()) for text in texts)
        assert totals.tokens == totals.bytes + len(texts)  # bytes, and one eod each
    assert len(manifest.splits["train"].shards) > 2 and manifest.splits["train"].blocks > 10


def test_metadata_tells_where_each_document_came_from(byte_corpus, text_directory):
    manifest = Manifest.load(byte_corpus)
    blocks = Blocks(byte_corpus, manifest.splits["train"], manifest.dtype)
    stored = (doc for block in range(len(blocks)) for doc in np.split(blocks.tokens(block), blocks.ends(block))[:-1])
    for number in range(len(manifest.splits["train"].shards)):
        rows = blocks.columns(number, ("source", "path", "row", "bytes", "tokens"))
        for path, size, count, document in zip(rows["path"], rows["bytes"], rows["tokens"], stored, strict=False):
            text = (text_directory / path).read_bytes()
            assert size == len(text) == count - 1 == len(document) - 1
            assert document[:-1].astype(np.uint8).tobytes() == text
        assert set(rows["source"]) == {str(text_directory)} and not rows["row"].any()
    assert next(stored, None) is None


def test_webdataset_reads_the_shards(byte_corpus):
    import webdataset

    manifest = Manifest.load(byte_corpus)
    blocks = Blocks(byte_corpus, manifest.splits["train"], manifest.dtype)
    urls = [str(byte_corpus / shard.file) for shard in manifest.splits["train"].shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"train-00000-{block:08d}" for block in range(len(blocks))]
    for block, sample in enumerate(samples):
        assert sample["tokens.npy"].dtype == np.uint16
        assert np.array_equal(sample["tokens.npy"], blocks.tokens(block))
        assert np.array_equal(sample["ends.npy"], blocks.ends(block))


def test_same_bytes_with_any_number_of_workers(tmp_path, build_small, monkeypatch):
    monkeypatch.setattr(work_module, "IN_PROCESS_BYTES", 0)
    for workers in (1, 2, 5):  # many parts, so that they can finish out of order
        build_small(tmp_path / f"w{workers}", TokenizerConfig("bpe", 300), workers=workers, part_bytes=10_000)
    assert len(contents(tmp_path / "w1")) > 6
    assert contents(tmp_path / "w1") == contents(tmp_path / "w2") == contents(tmp_path / "w5")


def test_splits_depend_on_the_text_alone(tmp_path, build_small, byte_corpus, text_directory):
    shutil.copytree(text_directory, tmp_path / "text" / "renamed")
    for i in range(40):
        (tmp_path / "text" / f"extra{i}.txt").write_text(f"an added document, number {i}")
    build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),))
    for split in ("train", "validation"):
        assert set(texts_of(byte_corpus, split)) < set(texts_of(tmp_path / "corpus", split))


def test_bpe_is_trained_on_the_training_split_alone(tmp_path, build_small, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(
        settle_module, "make_tokenizer", lambda config, sample: seen.extend(sample) or make(config, sample)
    )
    from data.tokenizers import make_tokenizer as make

    build_small(tmp_path / "corpus", TokenizerConfig("bpe", 300))
    assert sorted(seen) == sorted(texts_of(tmp_path / "corpus", "train"))


def test_copies_are_dropped_and_counted(tmp_path, build_small, text_directory):
    shutil.copytree(text_directory, tmp_path / "text" / "one")
    shutil.copytree(text_directory, tmp_path / "text" / "two")
    manifest = build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),))
    assert manifest.skipped == {"duplicate": 120}
    assert sum(split.documents for split in manifest.splits.values()) == 120


def test_small_corpora_hold_out_one_document(tmp_path, build_small):
    (tmp_path / "text").mkdir()
    for i in range(3):
        (tmp_path / "text" / f"{i}.txt").write_text(f"document {i}")
    manifest = build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),), validation_fraction=1e-9)
    assert {name: split.documents for name, split in manifest.splits.items()} == {"train": 2, "validation": 1}


def test_one_large_file_must_be_cut(tmp_path, build_small):
    text = "".join(f"line {i} with ünïcode\n" for i in range(500)) + "é" * 3000
    (tmp_path / "all.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"1 usable document.*corpus.max_document_bytes"):
        build_small(tmp_path / "corpus", sources=(str(tmp_path / "all.txt"),))
    assert not (tmp_path / "corpus").exists()
    build_small(tmp_path / "corpus", sources=(str(tmp_path / "all.txt"),), max_document_bytes=1001)
    pieces = texts_of(tmp_path / "corpus", "train") + texts_of(tmp_path / "corpus", "validation")
    assert max(len(piece.encode()) for piece in pieces) <= 1001
    manifest = Manifest.load(tmp_path / "corpus")
    assert manifest.skipped == {"duplicate": 4}  # the runs of é
    assert sorted("".join(pieces).replace("é", "")) == sorted(text.replace("é", ""))
    assert all(piece.endswith("\n") or "é" in piece for piece in pieces)


def test_no_usable_text_says_what_was_left_out(tmp_path, build_small):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(
        DataError, match=r"0 usable document\(s\) \(1 undecodable left out\).*latin.txt, row 0: 'utf-8' codec"
    ):
        build_small(tmp_path / "corpus", sources=(str(tmp_path / "latin.txt"),))


def test_a_finished_corpus_is_reused(corpus_copy, build_small, text_directory, monkeypatch):
    monkeypatch.setattr(build_module, "_Build", lambda *_: pytest.fail("built again"))
    before = contents(corpus_copy)
    manifest = build_small(corpus_copy, workers=2, name="another name")
    assert manifest == Manifest.load(corpus_copy)
    assert contents(corpus_copy) == before


def test_a_finished_corpus_is_reused_when_the_text_is_gone(tmp_path, build_small, text_directory):
    shutil.copytree(text_directory, tmp_path / "text")
    manifest = build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),))
    shutil.rmtree(tmp_path / "text")
    assert build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),)) == manifest


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"validation_fraction": 0.1}, "corpus.validation_fraction was 0.2, now 0.1"),
        ({"block_tokens": 4000}, "corpus.block_tokens was 3000, now 4000"),
        ({"tokenizer": TokenizerConfig("bpe", 300)}, "tokenizer.kind was 'byte', now 'bpe'"),
    ],
)
def test_other_options_for_an_existing_corpus_are_refused(corpus_copy, build_small, options, named):
    before = contents(corpus_copy)
    with pytest.raises(DataError, match="corpus.directory") as caught:
        build_small(corpus_copy, **options)
    assert named in str(caught.value) and f"rm -r {corpus_copy}" in str(caught.value)
    assert contents(corpus_copy) == before


def test_changed_text_for_an_existing_corpus_is_refused(tmp_path, build_small, text_directory):
    shutil.copytree(text_directory, tmp_path / "text")
    build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),))
    (tmp_path / "text" / "new.txt").write_text("more")
    with pytest.raises(DataError, match=r"corpus.sources \(their files\) was"):
        build_small(tmp_path / "corpus", sources=(str(tmp_path / "text"),))


def test_foreign_directories_are_left_alone(tmp_path, build_small):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="it exists and is not a corpus"):
        build_small(tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    build_small(tmp_path / "empty")


def test_unwritable_directory(tmp_path, build_small):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"corpus.directory = .*cannot build there"):
        build_small(tmp_path / "file" / "corpus")


def test_a_full_disk_loses_nothing(tmp_path, build_small, byte_corpus, monkeypatch):
    """Space runs out somewhere in each stage; what was finished before stays, and the build goes on from there."""
    real, left = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    kept: list[int] = []
    for space in (0, 3, 10, 20, 30, 20, 30, 40, 40):
        left = space
        with pytest.raises(DataError, match="No space left on device.*is kept in .*goes on from there"):
            build_small(tmp_path / "corpus", part_bytes=20_000)
        assert not (tmp_path / "corpus").exists()
        kept.append(len([path for path in (tmp_path / ".corpus.partial").glob("*/*") if path.name.isdigit()]))
    assert kept == sorted(kept) and len(set(kept)) > 5
    left = 1 << 30
    build_small(tmp_path / "corpus", part_bytes=20_000)
    build_small(tmp_path / "straight", part_bytes=20_000)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir() if "straight" not in path.name) == [".corpus.lock", "corpus"]


@pytest.mark.parametrize("stage", ["reading", "encoding"])
def test_an_interrupted_build_goes_on(tmp_path, text_directory, stage):
    corpus = CorpusConfig("small", (str(text_directory),), str(tmp_path / "corpus"), part_bytes=12_000, workers=1)
    calls: list[str] = []

    def interrupt(done: int, total: int, note: str, tokens: int) -> None:
        calls.append(note)
        if note == stage and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(corpus, TokenizerConfig("byte"), interrupt)
    assert not (tmp_path / "corpus").exists()
    first = calls.count(stage)
    calls.clear()
    build(corpus, TokenizerConfig("byte"), lambda done, total, note, tokens: calls.append(note))
    assert 0 < calls.count(stage) < 1.5 * first
    assert ("reading" in calls) == (stage == "reading")


def test_another_build_takes_the_place_of_an_unfinished_one(tmp_path, build_small, byte_corpus, text_directory):
    def interrupt(done: int, total: int, note: str, tokens: int) -> None:
        if note == "encoding":
            raise KeyboardInterrupt

    corpus = CorpusConfig("small", (str(text_directory),), str(tmp_path / "corpus"))
    with pytest.raises(KeyboardInterrupt):
        build(corpus, TokenizerConfig("byte"), interrupt)
    with pytest.raises(DataError, match=r"unfinished build with other options.*validation_fraction was 0.02, now 0.1"):
        build(replace(corpus, validation_fraction=0.1), TokenizerConfig("byte"), share=(1, 2))
    build_small(tmp_path / "corpus")
    assert contents(tmp_path / "corpus") == contents(byte_corpus)


KILLED = """
import os, signal, sys
from data.build import build, work
from data.config import CorpusConfig, TokenizerConfig
work.IN_PROCESS_BYTES = 0
left = int(sys.argv[3])
def kill(done, total, note, tokens):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
corpus = CorpusConfig("small", (sys.argv[1],), sys.argv[2], validation_fraction=0.2, block_tokens=3000,
                      shard_tokens=20000, part_bytes=20000, workers=int(sys.argv[4]))
build(corpus, TokenizerConfig("bpe", 300), kill)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_a_build_killed_again_and_again_gives_the_same_bytes(tmp_path, text_directory, build_small, workers):
    """SIGKILL after one, two, three … signs of life, wherever that is, until there is nothing left to kill."""
    command = [sys.executable, "-c", KILLED, str(text_directory), str(tmp_path / "corpus")]
    for life in (1, 30, 5, 60, 122, 3, 1000):
        found = subprocess.run([*command, str(life), str(workers)], check=False, cwd=Path(__file__).parents[2])
        assert found.returncode in (0, -signal.SIGKILL)
        assert (found.returncode == 0) == (tmp_path / "corpus").exists()
    build_small(tmp_path / "straight", TokenizerConfig("bpe", 300), part_bytes=20_000)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "straight")
    assert not (tmp_path / ".corpus.partial").exists()


def test_a_process_that_dies_is_told_and_the_build_goes_on(tmp_path, build_small, monkeypatch):
    monkeypatch.setattr(work_module, "IN_PROCESS_BYTES", 0)
    start, started = work_module._start, []
    monkeypatch.setattr(work_module, "_start", lambda lock: started.append(start(lock)) or started[-1])
    sent = work_module._Team.run

    def run(team, tasks, report):
        started[-1][0].kill()
        sent(team, tasks, report)

    with monkeypatch.context() as patch:
        patch.setattr(work_module._Team, "run", run)
        with pytest.raises(DataError, match="was killed by signal 9.*build again, it goes on"):
            build_small(tmp_path / "corpus", workers=2, part_bytes=40_000)
    build_small(tmp_path / "corpus", workers=2, part_bytes=40_000)
    build_small(tmp_path / "straight", part_bytes=40_000)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "straight")


def test_shares_together_are_the_whole(tmp_path, text_directory, build_small):
    """Three shares one after another, as a queue may run them, then all again: nobody waits for who is not there."""
    options = {"validation_fraction": 0.2, "block_tokens": 3000, "shard_tokens": 20_000, "part_bytes": 20_000}
    corpus = CorpusConfig("small", (str(text_directory),), str(tmp_path / "corpus"), workers=1, **options)
    for share in (2, 3):
        assert build(corpus, TokenizerConfig("bpe", 300), share=(share, 3)) is None
    assert not (tmp_path / ".corpus.partial" / "settled").exists()
    assert build(corpus, TokenizerConfig("bpe", 300), share=(1, 3)) is None
    assert build(corpus, TokenizerConfig("bpe", 300), share=(3, 3)) is None
    assert build(corpus, TokenizerConfig("bpe", 300), share=(2, 3)) is not None
    assert build(corpus, TokenizerConfig("bpe", 300), share=(1, 3)) == Manifest.load(tmp_path / "corpus")
    build_small(tmp_path / "straight", TokenizerConfig("bpe", 300), part_bytes=20_000)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "straight")


def test_shares_at_the_same_time_are_the_whole(tmp_path, text_directory, build_small):
    options = {"validation_fraction": 0.2, "block_tokens": 3000, "shard_tokens": 20_000, "part_bytes": 20_000}
    corpus = CorpusConfig("small", (str(text_directory),), str(tmp_path / "corpus"), workers=1, **options)
    code = (
        "import sys, pickle, time; from data.build import build; from data.config import TokenizerConfig\n"
        "build(pickle.load(sys.stdin.buffer), TokenizerConfig('bpe', 300), share=(int(sys.argv[1]), 3))"
    )
    shares = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2])
        for i in (1, 2, 3)
    ]
    for share in shares:
        assert share.stdin is not None
        share.stdin.write(pickle.dumps(corpus))
        share.stdin.close()
    assert [share.wait() for share in shares] == [0, 0, 0]
    build(corpus, TokenizerConfig("bpe", 300))  # whatever is left where a share came too late for another
    build_small(tmp_path / "straight", TokenizerConfig("bpe", 300), part_bytes=20_000)
    assert contents(tmp_path / "corpus") == contents(tmp_path / "straight")


def test_two_builders_at_once_build_once(tmp_path, build_small, byte_corpus):
    results: list[Manifest] = []
    threads = [threading.Thread(target=lambda: results.append(build_small(tmp_path / "corpus"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and results[0] == results[1] == results[2]
    assert contents(tmp_path / "corpus") == contents(byte_corpus)


def test_progress_is_reported_to_the_end(tmp_path, text_directory):
    calls: list[tuple[int, int, str, int]] = []
    corpus = CorpusConfig("small", (str(text_directory),), str(tmp_path / "corpus"), validation_fraction=0.2)
    build(corpus, TokenizerConfig("bpe", 300), lambda *call: calls.append(call))
    notes = list(dict.fromkeys(note for _, _, note, _ in calls))
    assert notes == ["reading", "training the tokenizer", "encoding", "computing baselines"]
    assert all(0 <= done <= total for done, total, _, _ in calls)
    last = [call for call in calls if call[2] == "encoding"][-1]
    assert last[0] == last[1] == calls[-1][1]
    assert last[3] == sum(split.tokens for split in Manifest.load(tmp_path / "corpus").splits.values())


def test_building_and_reading_import_no_torch(byte_corpus):
    code = (
        "import sys, data.build, data.inspect\nfrom data.open import ordered_stream\n"
        f"ordered_stream({str(byte_corpus)!r}, 'train', 16).batch(0, 2, 16)\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_description_shows_what_matters(byte_corpus):
    manifest, text = Manifest.load(byte_corpus), describe(byte_corpus)
    for split in ("train", "validation"):
        assert f"{manifest.splits[split].tokens:,} tokens" in text
    assert manifest.baselines is not None
    assert f"{manifest.baselines.bigram:.4f} nats/token" in text
    assert texts_of(byte_corpus, "validation")[0][:40].splitlines()[0] in text


def test_an_option_that_is_younger_than_a_corpus_was_at_its_default():
    now = spec_of(CorpusConfig("a", ("text",), "a"), TokenizerConfig("bpe", 300, special_tokens=("<|mask|>",)), None)
    was = {option: value for option, value in now.items() if option not in ("tokenizer.special_tokens", "corpus.clean")}
    assert differences(was, now) == "tokenizer.special_tokens was [], now ['<|mask|>']"
