from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data import stdlib
from data.config import DataError
from data.document import Document
from data.sources import Fields, Piece, Quarantined, inventory_hash, list_files, read_piece
from data.sources.files import cut_file

TEXTS = ["first line\nsecond\r\n", "naïve 日本語 🙂", "three"]


def read(source, field="text", columns=("*",), pieces=None) -> tuple[list[Document], list[Quarantined]]:
    """(documents, what was quarantined) of a source, or of pieces of one."""
    found = [
        item
        for piece in pieces or [Piece(file) for file in list_files((str(source),))]
        for item in read_piece(piece, Fields(field, columns))
    ]
    bad = [item for item in found if isinstance(item, Quarantined)]
    return [item for item in found if isinstance(item, Document)], bad


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
    elif kind == "jsonl.bz2":
        path.write_bytes(bz2.compress(jsonl(TEXTS)))
    elif kind == "jsonl.xz":
        path.write_bytes(lzma.compress(jsonl(TEXTS)))
    elif kind == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), path, row_group_size=2)
    elif kind == "saved":  # as datasets.Dataset.save_to_disk writes it
        path.mkdir()
        with pa.ipc.new_stream(
            path / "data-00000-of-00001.arrow", pa.schema({"id": pa.int64(), "text": pa.string()})
        ) as to:
            for start in (0, 2):
                to.write_table(pa.table({"id": [0, 1, 2][start : start + 2], "text": TEXTS[start : start + 2]}))
        for name in ("state.json", "dataset_info.json"):
            (path / name).write_text('{"description": "no text of a document"}')
    elif kind == "arrow":
        table = pa.table({"id": [0, 1, 2], "text": TEXTS})
        with pa.ipc.new_file(path, table.schema) as to:
            to.write_table(table)
    elif kind == "tar":
        members = [(f"{i}.json", json.dumps({"text": text}).encode()) for i, text in enumerate(TEXTS[:2])]
        write_tar(path, [*members, ("x/2.json", b'{"text": "not this"}'), ("x/2.txt", TEXTS[2].encode())])
    elif kind == "tar.zst":
        write_tar(path, [("0.jsonl", jsonl(TEXTS)), ("1.jpg", b"no text")])
        path.write_bytes(zstandard.compress(path.read_bytes()))
    elif kind == "tar.gz":
        write_tar(path, [(f"{i}.txt", text.encode()) for i, text in enumerate(TEXTS)], "w:gz")


KINDS = (
    *("directory", "jsonl", "jsonl.gz", "jsonl.zst", "jsonl.bz2", "jsonl.xz"),
    *("parquet", "saved", "arrow", "tar", "tar.gz", "tar.zst"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_texts(tmp_path, kind):
    write(tmp_path / f"some.{kind}", kind)
    found, bad = read(tmp_path / f"some.{kind}")
    assert [document.text for document in found] == TEXTS
    assert not bad
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


def test_columns_travel(tmp_path):
    """Scalars, those of inner objects, none that are long or no scalars; names of ours get an underscore."""
    day = datetime.date(2026, 8, 1)
    row = {"id": 7, "score": 0.5, "url": "u", "ok": True, "meta": {"lang": "en", "deep": {"x": 1}}, "tags": ["a"]}
    odd = {"none": None, "source": "web", "long": "x" * 2000, "text": "body", "big": 1 << 70, "half": "\ud800"}
    (tmp_path / "a.jsonl").write_text(json.dumps({**row, **odd}))
    scalars = {"id": 7, "score": 0.5, "url": "u", "ok": True, "meta.lang": "en", "source_": "web", "big": str(1 << 70)}
    assert read(tmp_path / "a.jsonl")[0][0].columns == scalars
    assert read(tmp_path / "a.jsonl", columns=())[0][0].columns == {}
    chosen = read(tmp_path / "a.jsonl", columns=("long", "meta.lang"))[0][0].columns
    assert chosen == {"long": "x" * 2000, "meta.lang": "en"}
    for table in (pa.table({"text": ["body"], "day": [day], "meta": [{"lang": "en"}], "id": [7]}),):
        pq.write_table(table, tmp_path / "b.parquet")
        assert read(tmp_path / "b.parquet")[0][0].columns == {"day": "2026-08-01", "meta.lang": "en", "id": 7}
        assert read(tmp_path / "b.parquet", columns=("meta.lang",))[0][0].columns == {"meta.lang": "en"}
    write_tar(tmp_path / "c.tar", [("0.txt", b"body"), ("0.json", b'{"id": 7}')])
    assert read(tmp_path / "c.tar")[0][0] == Document("body", str(tmp_path / "c.tar"), "c.tar", 0, {"id": 7})


def test_unusable_records_are_quarantined_with_their_reason(tmp_path):
    (tmp_path / "a-latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b-rows.jsonl").write_bytes(
        b'{"text": "one"}\n{"text": \n\n{"body": "x", "id": 3}\n{"text": 3}\n["text"]\n{"text": "\\ud800"}\n'
        b'\xff\n{"text": "two"}\n'
    )
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    write_tar(tmp_path / "d.tar", [("0.json", b"{"), ("1.txt", b"\xff"), ("2.txt", b"three"), ("2.json", b"[")])
    found, bad = read(tmp_path)
    assert [(document.text, document.path, document.row) for document in found] == [
        ("one", "b-rows.jsonl", 0),
        ("two", "b-rows.jsonl", 7),
    ]
    assert [(item.path[0], item.row, item.reason) for item in bad] == [
        ("a", 0, "undecodable"),
        ("b", 1, "not JSON"),
        ("b", 2, "no text field"),
        ("b", 3, "wrong type"),
        ("b", 4, "no text field"),
        ("b", 5, "undecodable"),
        ("b", 6, "undecodable"),
        ("c", 0, "no text field"),
        ("d", 0, "not JSON"),
        ("d", 1, "undecodable"),
        ("d", 2, "not JSON"),
    ]
    assert "no field 'text' (corpus.text_field); it has 'body', 'id'" in bad[2].detail and "'id': 3" in bad[2].excerpt
    assert "holds int, not text" in bad[3].detail and "it has 'body'" in bad[7].detail
    assert read(tmp_path / "c.parquet", "body")[0][0].text == "x"


MANY = [f"text number {i} {i * i}" for i in range(3000)]


def whole_tar(path):
    write_tar(path, [(f"{i}.txt", text.encode()) for i, text in enumerate(MANY)])


def damaged(path, name: str):
    """A file of 3,000 documents that breaks off, or is not what its name says."""
    target = path / name
    if name.startswith("not-a"):
        target.write_bytes(b"not what its name says " * 1000)
        return target
    if "parquet" in name:
        pq.write_table(pa.table({"text": MANY}), target)
    elif "arrow" in name:
        with pa.ipc.new_stream(target, pa.schema({"text": pa.string()})) as to:
            to.write_table(pa.table({"text": MANY}), max_chunksize=100)
    elif "tar" in name:
        whole_tar(target)
    else:
        target.write_bytes(jsonl(MANY))
    packers = {"gz": gzip.compress, "zst": zstandard.compress, "bz2": bz2.compress, "xz": lzma.compress}
    data = packers.get(name.split(".")[-1], bytes)(target.read_bytes())
    target.write_bytes(data[: len(data) * 2 // 3])
    return target


@pytest.mark.parametrize(
    "name",
    [
        *("cut.jsonl.gz", "cut.jsonl.zst", "cut.jsonl.bz2", "cut.jsonl.xz", "cut.tar", "cut.tar.gz"),
        *("not-a.jsonl.gz", "not-a.jsonl.zst", "not-a.jsonl.bz2", "not-a.jsonl.xz", "not-a.tar", "not-a.tar.gz"),
        *("cut.parquet", "cut.arrow", "not-a.parquet", "not-a.arrow"),
    ],
)  # fmt: skip
def test_a_damaged_file_gives_what_is_before_the_damage(tmp_path, name):
    """… in order, then one record in quarantine that names the file; the file behind it is read all the same."""
    target = damaged(tmp_path, name)
    (tmp_path / "z.txt").write_text("behind")
    found, bad = read(tmp_path)
    texts = [document.text for document in found]
    assert texts[-1] == "behind" and texts[:-1] == MANY[: len(texts) - 1]
    reasons = [item.reason for item in bad]
    if name == "cut.jsonl.zst":  # one frame: what its end would confirm may have been read, a cut line among it
        reasons = reasons[-1:]
    assert reasons == ["damaged file"]
    assert f"{target}: cannot be read to its end" in bad[-1].detail
    if name in ("cut.tar", "cut.tar.gz", "cut.jsonl.gz", "cut.arrow"):
        assert 500 < len(texts) < 3000


@pytest.mark.parametrize("cut", [0, 5000 - 10240, 512, 1536, 2048])
def test_a_tar_that_ends_between_samples_is_noticed(tmp_path, cut):
    write_tar(tmp_path / "a.tar", [("0.txt", b"x" * 1000), ("1.txt", b"y" * 1000)])
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 3072 + cut] if cut >= 0 else data[:cut])
    found, bad = read(tmp_path / "a.tar")
    assert [item.reason for item in bad] == (["damaged file"] if cut == 0 else [])
    assert len(found) == 2


def test_a_cut_line_of_plain_jsonl_is_one_bad_record(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(MANY)[:-9])
    found, bad = read(tmp_path / "a.jsonl")
    assert len(found) == 2999 and [item.reason for item in bad] == ["not JSON"]


@pytest.mark.parametrize("shares", [2, 3, 7, 40])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_pieces_of_a_file_are_the_file(tmp_path, kind, shares):
    """Wherever the cuts fall, every document once and in order; what does not split is one piece."""
    target = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        target.write_bytes(jsonl(["x" * (i * 37 % 101) for i in range(50)]))
    else:
        pq.write_table(pa.table({"text": ["x" * (i * 37 % 101) for i in range(50)]}), target, row_group_size=9)
    (file,) = list_files((str(target),))
    pieces = cut_file(file, -(-file.size // shares))
    assert len(pieces) == shares and sum(piece.size for piece in pieces) == file.size
    whole, parts = read(target)[0], read(target, pieces=pieces)[0]
    assert [document.text for document in parts] == [document.text for document in whole]
    assert len({(document.path, document.row) for document in parts}) == 50
    if kind == "parquet":
        assert [document.row for document in parts] == list(range(50))
    target.with_name("b.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000))
    assert len(cut_file(list_files((str(tmp_path / "*.gz"),))[0], 10)) == 1


HTML = "<html><head><title>t</title></head><body><nav>menu</nav><main><p>Caf\u00e9 is open.</p></main></body></html>"


def warc_record(kind: str, uri: str, body: bytes, content_type: str, more: str = "") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2026-08-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{uri}>\r\nContent-Type: {content_type}\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(uri: str, html: bytes, status: str = "200 OK", content_type: str = "text/html; charset=latin-1") -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(html)}\r\n\r\n".encode()
    return warc_record("response", uri, http + html, "application/http; msgtype=response")


WARC = [
    warc_record("warcinfo", "", b"software: x", "application/warc-fields"),
    warc_record("request", "http://a/", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
    response("http://a/", HTML.encode("latin-1")),
    response("http://b/", b"gone", "404 Not Found"),
    response("http://c/", b"\x89PNG", content_type="image/png"),
    response("http://d/", b"plain words", content_type="text/plain"),
]
WET = [
    WARC[0],
    warc_record(
        "conversion", "http://a/", "naïve\ntext".encode(), "text/plain", "WARC-Identified-Content-Language: fra\r\n"
    ),
    warc_record("conversion", "http://b/", b"\xff\xfe", "text/plain"),
    warc_record("conversion", "http://c/", b"last " * 300, "text/plain"),
]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_archives_of_the_web(tmp_path, ending):
    pytest.importorskip("warcio")
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    (tmp_path / f"a.warc{ending}").write_bytes(b"".join(map(pack, WARC)))
    (tmp_path / f"b.warc.wet{ending}").write_bytes(b"".join(map(pack, WET)))
    found, bad = read(tmp_path)
    assert [document.text.strip() for document in found] == [
        "Café is open.",
        "plain words",
        "naïve\ntext",
        "last " * 299 + "last",
    ]
    date = "2026-08-01T00:00:00Z"
    assert found[0].columns == {"url": "http://a/", "date": date, "content_type": "text/html"}
    assert found[2].columns == {"url": "http://a/", "date": date, "content_type": "text/plain", "language": "fra"}
    assert [(item.reason, item.row) for item in bad] == [("undecodable", 1)]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_cut_archive_keeps_what_is_whole(tmp_path, ending):
    pytest.importorskip("warcio")
    pack = gzip.compress if ending else bytes
    data = b"".join(map(pack, WET))
    (tmp_path / f"a.wet{ending}").write_bytes(data[: -(900 if not ending else 20)])
    found, bad = read(tmp_path)
    assert [document.text for document in found] == ["naïve\ntext"]
    assert [item.reason for item in bad] == ["undecodable", "damaged file"]
    (tmp_path / f"a.wet{ending}").write_bytes(pack(b"no archive at all"))
    assert [item.reason for item in read(tmp_path)[1]] == ["damaged file"]


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
