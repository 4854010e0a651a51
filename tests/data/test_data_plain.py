"""Tars of others, trained on as they are: found fast, read in place, checked, and equal to what lies in them."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import DataError, TokenizerConfig
from data.corpus import Corpus
from data.index import IndexConfig, index
from data.manifest import Manifest
from data.open import check_cache, open_stream
from data.plain import PLAIN, SEEN, PlainReader
from data.plan import PlanSpec
from data.remote import open_location
from data.source import Source
from data.stream import Stream
from data.stream_config import CacheConfig, DataConfig
from data.tar import scan
from data.tokenizers import Tokenizer
from tests.data.misbehaving import Server

EOD = 256
BYTE = TokenizerConfig("byte")


def npy(tokens: object, dtype: str = "<u2", version: tuple[int, int] = (1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(tokens, dtype), version=version)
    return file.getvalue()


def write_tar(
    path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], format_: int = tarfile.USTAR_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format_) as tar:
        for name, body in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def texts(count: int, seed: int = 0) -> list[str]:
    return [f"document {seed} {i} äöü " + "word " * ((i * 37 + seed) % 60) for i in range(count)]


def indexed(tmp_path: Path, *tars: Path | str, tokenizer: TokenizerConfig = BYTE, **options: object) -> Path:
    directory = tmp_path / "index"
    index(IndexConfig(tuple(map(str, tars)), str(directory), workers=1, **options), tokenizer)
    return directory


def everything(directory: Path) -> list[bytes]:
    """Tokens of all documents of both splits, sorted, as bytes of int64."""
    found = []
    for split in ("train", "validation"):
        corpus = Corpus(directory, split)
        found += [corpus.document(number).tobytes() for number in range(corpus.documents)]
        line = np.empty(corpus.tokens, np.int64)
        corpus.read(0, line)
        assert line.tobytes() == b"".join(found[-corpus.documents :])
        assert sum(int(corpus.lengths(shard).sum()) for shard in range(corpus.shards)) == corpus.tokens
    return sorted(found)


def wanted(documents: list[str]) -> list[bytes]:
    return sorted(np.array([*text.encode(), EOD], np.int64).tobytes() for text in documents)


FORMS: dict[str, Callable[[list[str]], dict[str, bytes]]] = {
    "txt": lambda found: {f"a/{i:04d}.txt": text.encode() for i, text in enumerate(found)},
    "gzip": lambda found: {f"{i:04d}.txt.gz": gzip.compress(text.encode()) for i, text in enumerate(found)},
    "json": lambda found: {
        f"{i:04d}.json": json.dumps({"n": 1, "text": text}).encode() for i, text in enumerate(found)
    },
    "jsonl": lambda found: {
        f"{i:04d}.jsonl": "\n".join(json.dumps({"text": text}) for text in found[i : i + 7]).encode() + b"\n" * (i % 2)
        for i in range(0, len(found), 7)
    },
    "uint16": lambda found: {f"{i:04d}.npy": npy([*text.encode(), EOD]) for i, text in enumerate(found)},
    "int64, no eod": lambda found: {f"{i:04d}.npy": npy(list(text.encode()), "<i8") for i, text in enumerate(found)},
    "mixed": lambda found: {
        f"{i:04d}.{('txt', 'tokens.npy')[i % 2]}": (text.encode(), npy(list(text.encode()), "<i4", (2, 0)))[i % 2]
        for i, text in enumerate(found)
    },
    "with others": lambda found: {
        name: body
        for i, text in enumerate(found)
        for name, body in (
            (f"{i:04d}.jpg", b"\xff"),
            (f"{i:04d}.json", b'{"url": "u"}'),
            (f"{i:04d}.txt", text.encode()),
        )
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_document_is_there(tmp_path: Path, form: str) -> None:
    parts = [texts(40, seed) for seed in range(3)]
    tars = [write_tar(tmp_path / "tars" / f"{i}.tar", FORMS[form](part)) for i, part in enumerate(parts)]
    before = [tar.read_bytes() for tar in tars]
    directory = indexed(tmp_path, tmp_path / "tars", validation_fraction=0.1)
    assert everything(directory) == wanted([text for part in parts for text in part])
    assert [tar.read_bytes() for tar in tars] == before, "tars are left as they are"
    manifest = Manifest.load(directory)
    size = sum(len(text.encode()) for part in parts for text in part)
    assert sum(split.bytes for split in manifest.splits.values()) == size
    assert 0 < manifest.splits["validation"].documents < 40


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_tarfile_finds_them(tmp_path: Path, format_: int) -> None:
    names = ["a.txt", "b/c.txt", f"{'d' * 90}/{'e' * 60}.txt"]
    if format_ != tarfile.USTAR_FORMAT:
        names += [f"{'f' * 300}.txt", "größe.txt", f"{'ü' * 120}.txt"]
    tar = write_tar(tmp_path / "x.tar", {name: bytes([i]) * (i * 400 + 1) for i, name in enumerate(names)}, format_)
    with tarfile.open(tar, "a", format=format_) as more:
        folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("link")
        folder.type, link.type, link.linkname = tarfile.DIRTYPE, tarfile.SYMTYPE, "a" * 150
        more.addfile(folder)
        more.addfile(link) if format_ != tarfile.USTAR_FORMAT else None
    found = scan(tar.read_bytes(), "x")
    with tarfile.open(tar) as reference:
        plain = [member for member in reference if member.isfile()]
        assert found.names == [member.name for member in plain] == names
        assert found.offsets.tolist() == [member.offset_data for member in plain]
        assert found.sizes.tolist() == [member.size for member in plain]
        assert found.others == len(reference.getmembers()) - len(plain)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("aé/._-", min_size=1, max_size=300).map(lambda name: f"m{name}z"), st.integers(0, 2000), max_size=6
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_any_tar_is_read_as_tarfile_reads_it(members: dict[str, int], format_: int) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for name, size in members.items():
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(b"x" * size))
    found = scan(file.getvalue(), "x")
    file.seek(0)
    with tarfile.open(fileobj=file) as reference:
        plain = reference.getmembers()
    assert found.names == [member.name for member in plain]
    assert found.offsets.tolist() == [member.offset_data for member in plain]
    assert found.sizes.tolist() == [member.size for member in plain]


def test_sizes_in_base_256(tmp_path: Path) -> None:
    body = bytearray(write_tar(tmp_path / "x.tar", {"a.txt": b"hello"}).read_bytes())
    body[124:136] = bytes([0x80]) + (5).to_bytes(11, "big")
    total = sum(body[:148]) + sum(body[156:512]) + 8 * 32
    body[148:156] = f"{total:06o}\0 ".encode()
    assert scan(bytes(body), "x").sizes.tolist() == [5]


def test_any_part_of_the_line_is_a_part_of_the_whole(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", FORMS["mixed"](texts(50)))
    corpus = Corpus(indexed(tmp_path, tmp_path / "tars"), "train")
    whole = np.empty(corpus.tokens, np.int64)
    corpus.read(0, whole)
    for start in range(0, corpus.tokens, 23):
        for count in (1, 2, 60, 700):
            part = np.full(min(count, corpus.tokens - start), -1, np.int64)
            corpus.read(start, part)
            assert np.array_equal(part, whole[start : start + len(part)])


def test_documents_of_text_are_kept_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(50)))
    directory = indexed(tmp_path, tmp_path / "tars")
    made: list[str] = []
    encode = Tokenizer.encode_documents
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda self, found: (made.extend(found), encode(self, found))[1])
    manifest = Manifest.load(directory)
    shard = manifest.splits["train"].shards[0]
    for limit, again in ((1 << 20, 0), (1, shard.documents)):
        monkeypatch.setattr("data.plain.CACHED_BYTES", limit)
        line = PlainReader(directory, manifest).shard(shard, tmp_path / "tars" / "0.tar")
        for _ in range(2):
            made.clear()
            for number in range(shard.documents):
                line.read_document(number)
        assert len(made) == again


def test_a_stream_reads_it(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", FORMS["uint16"](texts(80)))
    corpus = Corpus(indexed(tmp_path, tmp_path / "tars"), "train")
    source = Source(corpus, PlanSpec("cut", 16), seed=1)
    rows = Stream([source]).batch(0, source.units, 16)
    found = rows.tokens[:, 1:][rows.weights > 0]
    whole = np.empty(corpus.tokens, np.int64)
    corpus.read(0, whole)
    assert np.array_equal(np.sort(found), np.sort(whole))


def test_workers_change_nothing(tmp_path: Path) -> None:
    for number in range(3):
        write_tar(tmp_path / "tars" / f"{number}.tar", FORMS["jsonl"](texts(30, number)))
    made = []
    for workers in (1, 2):
        directory = tmp_path / f"index{workers}" / "same"
        index(IndexConfig((str(tmp_path / "tars"),), str(directory), workers=workers), BYTE)
        made.append({path.name: path.read_bytes() for path in directory.rglob("*") if path.is_file()})
    assert made[0] == made[1] and len(made[0]) > 8


def test_the_split_of_a_document_depends_on_it_alone(tmp_path: Path) -> None:
    few, many = texts(60), texts(60) + texts(60, 1)
    held = []
    for name, documents in (("few", few), ("many", many)):
        write_tar(tmp_path / name / "0.tar", FORMS["txt"](documents))
        directory = tmp_path / f"index-{name}"
        index(IndexConfig((str(tmp_path / name),), str(directory), validation_fraction=0.2, workers=1), BYTE)
        corpus = Corpus(directory, "validation")
        held.append({corpus.document(number).tobytes() for number in range(corpus.documents)})
    assert 0 < len(held[0]) < 30 and held[0] == {document for document in held[1] if document in set(wanted(few))}


def test_one_document_is_always_held_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(4)))
    manifest = Manifest.load(indexed(tmp_path, tmp_path / "tars", validation_fraction=1e-9))
    assert {name: split.documents for name, split in manifest.splits.items()} == {"train": 3, "validation": 1}


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    members = {
        **FORMS["txt"](texts(9)),
        "b1.txt": b" \n",
        "b2.txt": b"\xff\xfe",
        "b3.cls": b"1",
        "b4.npy": npy([]),
        ".hidden": b"",
    }
    write_tar(tmp_path / "tars" / "0.tar", members)
    manifest = Manifest.load(indexed(tmp_path, tmp_path / "tars"))
    assert manifest.skipped == {"empty": 2, "undecodable": 1, "no document": 1, "no sample": 1}


def test_an_index_may_move_with_its_tars_and_be_read_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "here" / "tars" / "0.tar", FORMS["txt"](texts(30)))
    index(IndexConfig((str(tmp_path / "here" / "tars"),), str(tmp_path / "here" / "index"), workers=1), BYTE)
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "there" / "index" / SEEN).unlink()  # copied without dates: checksums tell
    assert everything(tmp_path / "there" / "index") == wanted(texts(30))


def damage_tar(change: Callable[[bytes], bytes], keep_date: bool = False) -> Callable[[Path, Path], None]:
    def run(tar: Path, _: Path) -> None:
        before = tar.stat()
        tar.write_bytes(change(tar.read_bytes()))
        os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if keep_date else 10**9)))

    return run


def swap_members(body: bytes) -> bytes:
    return body[1024:2048] + body[:1024] + body[2048:]  # two members of a block each


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            damage_tar(lambda body: body[:-512], keep_date=True),
            r"0\.tar: \d+ bytes, but \d+ when it was indexed; index it again",
        ),
        (damage_tar(swap_members), r"0\.tar: its contents changed since it was indexed \(members reordered"),
        (lambda tar, _: tar.unlink(), r"0\.tar: this tar is missing"),
        (lambda _, index: (index / "train-00000.idx.npy").unlink(), r"train-00000\.idx\.npy: this index is missing"),
        (
            lambda _, index: (index / "train-00000.idx.npy").write_bytes(b"x"),
            r"train-00000\.idx\.npy: 1 bytes, but the manifest says \d+",
        ),
    ],
    ids=["size", "reordered", "no tar", "no index", "index"],
)
def test_an_index_that_does_not_match_its_tar_is_told(tmp_path: Path, damage: Callable, message: str) -> None:
    tar = write_tar(tmp_path / "tars" / "0.tar", {f"{i}.txt": f"text {i}".encode() for i in range(30)})
    directory = indexed(tmp_path, tar)
    damage(tar, directory)
    with pytest.raises(DataError, match=message):
        Corpus(directory, "train").document(0)


def test_a_tar_that_was_touched_is_read_once_more_and_then_known(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(30)))
    directory = indexed(tmp_path, tar)
    os.utime(tar, (1, 1))
    Corpus(directory, "train").document(0)
    assert json.loads((directory / SEEN).read_text()) == {"0.tar": 10**9}


def test_a_tokenizer_that_gives_other_tokens_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(30)))
    directory = indexed(tmp_path, tar)
    encode = Tokenizer.encode_documents
    monkeypatch.setattr(Tokenizer, "encode_documents", lambda self, found: [one[1:] for one in encode(self, found)])
    with pytest.raises(DataError, match=r"0\.tar, byte \d+: \d+ tokens, but \d+ when it was indexed"):
        Corpus(directory, "train").document(0)


BAD_TARS: dict[str, tuple[Callable[[], bytes | list[tuple[str, bytes]]], str]] = {
    "cut in a member": (lambda: whole_tar()[:700], r"truncated: it ends at byte 700 before \d+ bytes of '0000\.txt'"),
    "cut between members": (
        lambda: whole_tar()[:1024],
        r"truncated: it ends at byte 1024 before the end-of-archive record",
    ),
    "doubled members": (lambda: [("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")], r"member 'a\.txt' comes twice"),
    "reordered members": (
        lambda: [("a.txt", b"1"), ("b.txt", b"2"), ("a.json", b"{}")],
        r"members of the sample 'a' lie apart",
    ),
    "two tars joined": (lambda: whole_tar() * 2, r"the archive ends at byte \d+, but more follows at byte \d+"),
    "no tar": (lambda: b"a page of HTML " * 100, r"not a tar \(its first 512 bytes are no header\)"),
    "short": (lambda: b"x", r"1 bytes are no tar"),
    "empty": (lambda: b"", r"0\.tar: empty, and no tar"),
    "compressed": (lambda: gzip.compress(np.arange(4000).tobytes()), r"compressed, .* decompress it"),
    "damaged header": (
        lambda: whole_tar()[:1030] + b"?" + whole_tar()[1031:],
        r"the tar header at byte 1024 is damaged",
    ),
    "floats": (
        lambda: [("a.npy", npy([1.0], "<f4"))],
        r"member 'a\.npy': an array of float32, but tokens are integers",
    ),
    "two dimensions": (lambda: [("a.npy", npy([[1]]))], r"an array of shape \(1, 1\), but tokens have one dimension"),
    "no array": (lambda: [("a.npy", b"hello")], r"member 'a\.npy': not an array of numpy"),
    "array cut short": (
        lambda: [("a.npy", npy([1, 2, 3])[:-2])],
        r"its header says 3 tokens of uint16, but it has 4 bytes",
    ),
    "out of range": (
        lambda: [("a.npy", npy([1, 300]))],
        r"has the token 300, but the tokenizer the ids 0 to 256",
    ),
    "negative": (
        lambda: [("a.npy", npy([-1], "<i4"))],
        r"has the token -1, but the tokenizer the ids 0 to 256",
    ),
    "not JSON": (lambda: [("a.jsonl", b'{"text": "a"}\n{')], r"member 'a\.jsonl', line 2: not JSON"),
    "no text": (
        lambda: [("a.json", b'{"body": "a"}')],
        r"no text under 'text'; it has 'body'; name the key by --text-field",
    ),
    "damaged gzip": (lambda: [("a.txt.gz", gzip.compress(b"a" * 99)[:-9])], r"its gzip data is damaged"),
    "several arrays": (
        lambda: [("a.ids.npy", npy([1])), ("a.mask.npy", npy([1]))],
        r"several members that could be its document \(a\.ids\.npy, a\.mask\.npy\); choose by --member",
    ),
    "our own shards": (lambda: [("a.tokens.npy", npy([1])), ("a.ends.npy", npy([1]))], r"a shard of a built corpus"),
    "one document": (
        lambda: [("a.txt", b"one")],
        r"1 usable document\(s\), but a corpus needs one for training and one",
    ),
    "nothing": (lambda: [("a.jpg", b"one")], r"0 usable document\(s\) \(1 no document left out\)"),
}


def whole_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, body in FORMS["txt"](texts(9)).items():
            info = tarfile.TarInfo(name.removeprefix("a/"))
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return file.getvalue()


@pytest.mark.parametrize("case", BAD_TARS)
def test_a_bad_tar_is_told_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    made, message = BAD_TARS[case][0](), BAD_TARS[case][1]
    tar = tmp_path / "tars" / "0.tar"
    if isinstance(made, bytes):
        tar.parent.mkdir()
        tar.write_bytes(made)
    else:
        write_tar(tar, made)
    with pytest.raises(DataError, match=message):
        indexed(tmp_path, tar)
    assert {path.name for path in tmp_path.iterdir()} == {"tars"}


def test_options_choose_members_and_keys(tmp_path: Path) -> None:
    found = texts(20)
    members = {
        name: body
        for i, text in enumerate(found)
        for name, body in (
            (f"{i}.ids.npy", npy(list(text.encode()))),
            (f"{i}.mask.npy", npy([1])),
            (f"{i}.json", json.dumps({"body": f"{text}!"}).encode()),
        )
    }
    tar = write_tar(tmp_path / "tars" / "0.tar", members)
    assert everything(indexed(tmp_path / "1", tar, member="ids.npy")) == wanted(found)
    chosen = indexed(tmp_path / "2", tar, member="json", text_field="body")
    assert everything(chosen) == wanted([f"{text}!" for text in found])
    fingerprints = {Manifest.load(tmp_path / name / "index").fingerprint for name in "12"}
    assert len(fingerprints) == 2, "other documents of the same tars are another corpus"


def test_fields_of_json_are_metadata_that_filters(tmp_path: Path) -> None:
    """Of the document, its line, or a .json beside it; types are those that hold what every tar has."""
    line = [{"text": f"{i} " + "a" * i, "score": i, "language": "en" if i % 2 else "de"} for i in range(20)]
    write_tar(tmp_path / "tars" / "0.tar", {"0.jsonl": "\n".join(map(json.dumps, line)).encode()})
    beside = {f"{i}.npy": npy([65, 66, 67 + i]) for i in range(9)}
    about = {f"{i}.json": json.dumps({"score": i / 2, "path": "x"}).encode() for i in range(8)} | {"8.json": b"[1]"}
    samples = {name: body for i in range(9) for name, body in (*beside.items(), *about.items()) if name[0] == str(i)}
    write_tar(tmp_path / "tars" / "1.tar", samples)
    directory = indexed(tmp_path, tmp_path / "tars", validation_fraction=0.2)
    manifest = Manifest.load(directory)
    assert manifest.columns == {"language": "str", "path_": "str", "score": "float"}
    corpus = Corpus(directory, "train")
    found = {}
    for shard, start in enumerate(corpus.document_starts[:-1].tolist()):
        columns = corpus.columns(shard, ["score", "language"])
        for place, pair in enumerate(zip(columns["score"].tolist(), columns["language"].tolist(), strict=True)):
            found[corpus.document(start + place)[:-1].astype("u1").tobytes()] = pair
    for row in line:
        assert found.get(row["text"].encode(), (row["score"], row["language"])) == (row["score"], row["language"])
    for i in range(8):
        assert found.get(bytes([65, 66, 67 + i]), (i / 2, None)) == (i / 2, None)
    assert all(math.isnan(found[text][0]) for text in found if text == bytes([65, 66, 75]))
    corpus.verify()
    config = DataConfig(str(directory), where='language == "en" and score > 3', packing="document")
    kept = {row["text"] for row in line if row["language"] == "en" and row["score"] > 3}
    stream = open_stream(config, 1, length=32, tokens=32)
    assert stream.sources[0].documents == sum(text.encode() in found for text in kept)
    assert Manifest.load(indexed(tmp_path / "none", tmp_path / "tars", columns=())).columns == {}
    write_tar(tmp_path / "bad" / "0.tar", {"0.txt": b"text", "0.json": b"{"})
    with pytest.raises(DataError, match=r"the \.json of '0\.txt' is no JSON .*--columns ''"):
        indexed(tmp_path / "bad", tmp_path / "bad" / "0.tar")


def test_what_cannot_be_indexed_is_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(9)))
    with pytest.raises(DataError, match=r"--validation-fraction 0\.7"):
        indexed(tmp_path, tar, validation_fraction=0.7)
    with pytest.raises(DataError, match=r"tokenizer.kind=bpe: is trained on text"):
        indexed(tmp_path, tar, tokenizer=TokenizerConfig("bpe", 300))
    with pytest.raises(DataError, match=r"nowhere\.tar: no such file"):
        indexed(tmp_path, tmp_path / "nowhere.tar")
    with pytest.raises(DataError, match=r"in one place, not in 2 kinds"):
        indexed(tmp_path, tar, "https://h/1.tar")
    indexed(tmp_path, tar)
    with pytest.raises(DataError, match=r"is there already; delete it"):
        indexed(tmp_path, tar)


def test_tars_and_index_at_a_url(tmp_path: Path) -> None:
    """Tars from a server are indexed; then the index goes there too; then the server fails now and then."""
    bodies = {
        f"t/{i}.tar": write_tar(tmp_path / f"{i}.tar", FORMS["mixed"](texts(30, i))).read_bytes() for i in range(3)
    }
    server = Server(bodies)
    try:
        cache = CacheConfig(directory=str(tmp_path / "cache"), timeout_seconds=5, backoff_seconds=0.01)
        server.orders["t/1.tar"] = ["reset", "truncate"]
        config = IndexConfig((f"{server.url}/t/{{0..2}}.tar",), str(tmp_path / "index"), workers=1)
        manifest = index(config, BYTE, cache)
        assert manifest.spec["tars"] == f"{server.url}/t"
        expected = wanted([text for i in range(3) for text in texts(30, i)])
        before = server.requests.copy()
        for path in (tmp_path / "index").rglob("*"):
            if path.is_file():
                server.files[f"i/{path.relative_to(tmp_path / 'index')}"] = path.read_bytes()
        for place in (tmp_path / "index", f"{server.url}/i"):
            found = []
            for split in ("train", "validation"):
                corpus = Corpus(place, split, cache)
                corpus.expect(np.arange(0, corpus.tokens, 10))
                found += [corpus.document(number).tobytes() for number in range(corpus.documents)]
                corpus.verify()
            assert sorted(found) == expected
        assert {path: server.requests[path] for path in bodies} == {path: before[path] for path in bodies}, (
            "kept from indexing"
        )
    finally:
        server.close()


def test_a_stream_from_a_url_fetches_ahead_through_a_small_cache(tmp_path: Path) -> None:
    """Window shuffle over eight tars with a cache for three: every batch as from the local corpus."""
    tars = {f"t/{i}.tar": write_tar(tmp_path / "t" / f"{i}.tar", FORMS["uint16"](texts(40, i))) for i in range(8)}
    directory = indexed(tmp_path, tmp_path / "t")
    server = Server({name: path.read_bytes() for name, path in tars.items()})
    for path in directory.rglob("*"):
        if path.is_file():
            server.files[f"index/{path.relative_to(directory)}"] = path.read_bytes()
    largest = max(path.stat().st_size for path in tars.values())
    options = {"directory": str(tmp_path / "cache"), "timeout_seconds": 5.0, "backoff_seconds": 0.01}
    cache = CacheConfig(gigabytes=3 * largest / 1e9, **options)
    try:
        server.orders["t/3.tar"] = ["status:503", "truncate"]
        streams = [
            Stream([Source(Corpus(place, "train", cache), PlanSpec("cut", 16), 5, shuffle="window", window=2)])
            for place in (directory, f"{server.url}/index")
        ]
        units = streams[0].sources[0].units
        for row in range(0, units, 64):
            here, there = (stream.batch(row * 16, 64, 16) for stream in streams)
            assert np.array_equal(here.tokens, there.tokens)
            assert sum(file.stat().st_size for file in (tmp_path / "cache" / "files").iterdir()) <= 3 * largest
        assert streams[0].fingerprint == streams[1].fingerprint
        opened = open_location(f"{server.url}/index", cache).directory
        assert not Corpus(opened, "train", cache).local, "the directory of an opened corpus stands for its URL"
    finally:
        server.close()


def test_options_of_the_cache_need_something_elsewhere(tmp_path: Path) -> None:
    directory = indexed(tmp_path, write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(9))))
    check_cache(DataConfig(path=str(directory)))
    with pytest.raises(DataError, match="data.cache has no effect on .*index, whose shards are on this machine"):
        check_cache(DataConfig(path=str(directory), cache=CacheConfig(gigabytes=1)))
    manifest = Manifest.load(directory)
    replace(manifest, spec={**manifest.spec, "tars": "s3://bucket/tars"}).save(directory)
    check_cache(DataConfig(path=str(directory), cache=CacheConfig(gigabytes=1, directory=str(tmp_path / "cache"))))


def test_a_plain_corpus_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "tars" / "0.tar", FORMS["txt"](texts(9)))
    manifest = Manifest.load(indexed(tmp_path, tar))
    assert manifest.spec[PLAIN]["options"] == {"text_field": "text", "member": ""}
    assert manifest.spec["tars"] == "../tars"
