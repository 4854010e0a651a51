"""Bad input to a build: quarantined with its reason up to a limit, then one clear message."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data.config import DataError
from data.manifest import Manifest
from data.shards import Blocks, read_columns


def write_lines(path: Path, count: int, bad: int = 0) -> Path:
    """A .jsonl file of `count` documents, every one with a number, and `bad` lines that are none among them."""
    rows = [json.dumps({"text": f"document {i} " * (i % 9 + 1), "number": i, "even": i % 2 == 0}) for i in range(count)]
    for i in range(bad):
        rows.insert(i * 3, "{broken")
    path.write_text("\n".join(rows))
    return path


def quarantine_of(corpus: Path) -> list[dict]:
    data = zstandard.ZstdDecompressor().stream_reader((corpus / "quarantine.jsonl.zst").open("rb")).read()
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("part_bytes", [0, 4000])
def test_bad_records_are_kept_with_their_reason_and_counted(tmp_path, build_small, part_bytes):
    source = write_lines(tmp_path / "a.jsonl", 200, bad=7)
    manifest = build_small(tmp_path / "corpus", sources=(str(source),), part_bytes=part_bytes)
    assert manifest.quarantined == {"not JSON": 7}
    assert sum(split.documents for split in manifest.splits.values()) == 200
    found = quarantine_of(tmp_path / "corpus")
    assert [item["row"] for item in found] == [0, 3, 6, 9, 12, 15, 18]
    assert {(item["path"], item["reason"], item["excerpt"].strip()) for item in found} == {
        ("a.jsonl", "not JSON", "{broken")
    }
    assert build_small(tmp_path / "corpus", sources=(str(source),), part_bytes=part_bytes) == manifest


def test_a_corpus_without_bad_records_has_no_quarantine(byte_corpus):
    assert not (byte_corpus / "quarantine.jsonl.zst").exists()
    assert Manifest.load(byte_corpus).quarantined == {}


@pytest.mark.parametrize(("limit", "fine"), [(0.1, True), (30, True), (0.05, False), (29, False), (0, False)])
def test_too_many_bad_records_are_one_message(tmp_path, build_small, limit, fine):
    source = write_lines(tmp_path / "a.jsonl", 300, bad=30)
    options = {"sources": (str(source),), "max_bad_records": limit}
    if fine:
        assert build_small(tmp_path / "corpus", **options).quarantined == {"not JSON": 30}
        return
    with pytest.raises(DataError, match=r"corpus.max_bad_records = .* of .* records cannot be used") as caught:
        build_small(tmp_path / "corpus", **options)
    assert f"{source}: a.jsonl, row 0: Expecting property name" in str(caught.value)
    assert "raise corpus.max_bad_records" in str(caught.value) and not (tmp_path / "corpus").exists()
    # What was read is not read again once the limit is another.
    assert build_small(tmp_path / "corpus", sources=(str(source),), max_bad_records=0.2).quarantined == {"not JSON": 30}


def test_a_share_of_bad_records_is_always_ten(tmp_path, build_small):
    source = write_lines(tmp_path / "a.jsonl", 20, bad=10)
    assert build_small(tmp_path / "corpus", sources=(str(source),)).quarantined == {"not JSON": 10}
    write_lines(tmp_path / "a.jsonl", 20, bad=11)
    with pytest.raises(DataError, match="11 of 31 records cannot be used"):
        build_small(tmp_path / "other", sources=(str(source),))


def test_a_wrong_text_field_is_named(tmp_path, build_small):
    source = write_lines(tmp_path / "a.jsonl", 5)
    with pytest.raises(DataError, match=r"0 usable document.*5 no text field left out.*no field 'body' \(corpus.text"):
        build_small(tmp_path / "corpus", sources=(str(source),), text_field="body")


def test_an_empty_corpus_is_one_message(tmp_path, build_small):
    (tmp_path / "a.jsonl").write_text("\n\n")
    (tmp_path / "b.txt").write_text(" ")
    with pytest.raises(DataError, match=r"0 usable document\(s\) \(1 empty left out\), but a corpus needs"):
        build_small(tmp_path / "corpus", sources=(str(tmp_path / "*.*"),))


@pytest.mark.parametrize("damage", ["truncated", "no tar"])
def test_a_damaged_tar_among_others_costs_what_is_behind_the_damage(tmp_path, build_small, damage):
    write_lines(tmp_path / "a.jsonl", 50)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for i in range(40):
            info = tarfile.TarInfo(f"{i}.txt")
            data = f"in a tar {i} ".encode() * 200
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(data[: len(data) // 2] if damage == "truncated" else b"no tar " * 5000)
    manifest = build_small(tmp_path / "corpus", sources=(str(tmp_path / "*.*"),))
    assert manifest.quarantined == {"damaged file": 1}
    documents = sum(split.documents for split in manifest.splits.values())
    assert documents == 50 if damage == "no tar" else 60 < documents < 75
    assert f"{tmp_path / 'b.tar'}: cannot be read to its end" in quarantine_of(tmp_path / "corpus")[0]["detail"]


def test_columns_are_in_the_shards_with_types_of_all_parts(tmp_path, build_small):
    rows = [{"text": f"one {i}", "score": i} for i in range(20)] + [{"text": "two", "score": 0.5, "lang": "en"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    manifest = build_small(tmp_path / "corpus", sources=(str(tmp_path / "a.jsonl"),), part_bytes=100)
    assert manifest.columns == {"lang": "str", "score": "float"}
    found = {}
    for split in manifest.splits.values():
        blocks = Blocks(tmp_path / "corpus", split, manifest.dtype)
        texts = (
            document[:-1].astype(np.uint8).tobytes().decode()
            for block in range(len(blocks))
            for document in np.split(blocks.tokens(block), blocks.ends(block))[:-1]
        )
        for shard in split.shards:
            columns = read_columns(tmp_path / "corpus", shard, ["score", "lang"])
            found.update({next(texts): (score, lang) for score, lang in zip(*columns.values(), strict=True)})
    assert found == {row["text"]: (float(row["score"]), row.get("lang")) for row in rows}
    assert build_small(tmp_path / "none", sources=(str(tmp_path / "a.jsonl"),), columns=()).columns == {}
