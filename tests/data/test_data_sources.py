from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data import stdlib
from data.config import DataError
from data.sources import inventory_hash, list_files, read_documents

TEXTS = ["first line\nsecond\r\n", "naïve 日本語 🙂", "three"]


def read(source, field="text"):
    skipped: Counter[str] = Counter()
    found = [document for file in list_files((str(source),)) for document in read_documents(file, field, skipped)]
    return found, skipped


def jsonl(texts, field="text") -> bytes:
    return "\n\n".join(json.dumps({"id": i, field: text}) for i, text in enumerate(texts)).encode()


def write_tar(path, members: list[tuple[str, bytes]], mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def write(path, kind):
    if kind == "directory":
        (path / "deep").mkdir(parents=True)
        for name, text in zip(["a.txt", "b.md", "deep/c.py"], TEXTS, strict=True):
            (path / name).write_bytes(text.encode())
        (path / ".hidden.txt").write_text("no")
        (path / "picture.png").write_bytes(b"\x89PNG")
        (path / ".git").mkdir()
        (path / ".git" / "x.txt").write_text("no")
    elif kind == "jsonl":
        path.write_bytes(jsonl(TEXTS))
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(jsonl(TEXTS)))
    elif kind == "jsonl.zst":
        path.write_bytes(zstandard.compress(jsonl(TEXTS[:1]) + b"\n") + zstandard.compress(jsonl(TEXTS[1:])))
    elif kind == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), path, row_group_size=2)
    elif kind == "tar":
        members = [(f"{i}.json", json.dumps({"text": text}).encode()) for i, text in enumerate(TEXTS[:2])]
        write_tar(path, [*members, ("x/2.json", b'{"text": "not this"}'), ("x/2.txt", TEXTS[2].encode())])
    elif kind == "tar.gz":
        write_tar(path, [(f"{i}.txt", text.encode()) for i, text in enumerate(TEXTS)], "w:gz")


@pytest.mark.parametrize("kind", ["directory", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "tar", "tar.gz"])
def test_every_format_gives_the_same_texts(tmp_path, kind):
    write(tmp_path / f"some.{kind}", kind)
    found, skipped = read(tmp_path / f"some.{kind}")
    assert [document.text for document in found] == TEXTS
    assert not skipped
    assert {document.source for document in found} == {str(tmp_path / f"some.{kind}")}
    assert not any(str(tmp_path) in document.path for document in found)
    # The same files are found by searching the directory they are in.
    assert [document.text for document in read(tmp_path)[0]] == TEXTS


def test_single_text_file_of_any_name(tmp_path):
    (tmp_path / "README").write_bytes(TEXTS[0].encode())
    assert [document.text for document in read(tmp_path / "README")[0]] == TEXTS[:1]


def test_glob_reads_matches_in_order_of_name(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_bytes(jsonl([name]))
    found, _ = read(tmp_path / "*.jsonl")
    assert [(document.path, document.text) for document in found] == [("a.jsonl", "a.jsonl"), ("b.jsonl", "b.jsonl")]


def test_unusable_documents_are_counted(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": null}\n{"text": "\\ud800"}\n{"text": "fine"}\n')
    found, skipped = read(tmp_path)
    assert [(document.text, document.row) for document in found] == [("fine", 2)]
    assert skipped == {"undecodable": 2, "empty": 2}


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


MANY = jsonl([f"text number {i}" for i in range(3000)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", b'\n{"body": "x", "id": 3}', r"a.jsonl, line 2: no field 'text'.*it has 'body', 'id'"),
        ("a.jsonl", b'{"text": 3}', r"a.jsonl, line 1: 'text'.*holds int, not text"),
        ("a.jsonl", b'["text"]', r"line 1: no field 'text'"),
        ("a.jsonl.gz", truncated(gzip.compress(MANY)), r"a.jsonl.gz: cannot be read to its end"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz: cannot be read to its end"),
        ("a.jsonl.zst", truncated(zstandard.compress(MANY)), r"a.jsonl.zst: cannot be read to its end"),
        ("a.jsonl.zst", b"no zstandard", r"a.jsonl.zst: cannot be read to its end"),
        ("a.parquet", b"no parquet", r"a.parquet: cannot be read to its end"),
        ("a.tar", b"no tar" * 1000, r"a.tar: cannot be read to its end"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


def test_truncated_tar_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.txt", b"x" * 3000), ("1.txt", b"y" * 3000)])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"a.tar: cannot be read to its end"):
        read(tmp_path / "a.tar")


def test_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no field 'text' \(corpus.text_field\); it has 'body'"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", "body")[0][0].text == "x"


def test_sources_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match=r"corpus.sources: .*absent' does not exist"):
        read(tmp_path / "absent")
    with pytest.raises(DataError, match=r"corpus.sources: .* holds no text"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"corpus.sources: .* holds no text"):
        read(tmp_path / "*.txt")


def test_inventory_notices_changed_files(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = inventory_hash(list_files((str(tmp_path),)))
    assert inventory_hash(list_files((str(tmp_path),))) == before
    (tmp_path / "a.txt").write_text("three")
    assert inventory_hash(list_files((str(tmp_path),))) != before


def test_stdlib_is_large_and_free_of_installed_packages():
    files = list_files(("stdlib",))
    assert sum(file.size for file in files) > 8e6
    assert not [file.path for file in files if "site-packages" in file.path or "dist-packages" in file.path]
    assert "json/decoder.py" in {file.path for file in files}


def test_stdlib_docstrings_repeat_themselves():
    texts = list(stdlib.docstrings())
    assert texts == list(stdlib.docstrings())
    assert any("math.sqrt" in text for text in texts)
    assert not [text for text in texts if " at 0x" in text]
