from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from data.config import DataError
from data.manifest import MANIFEST, Manifest, Split, Totals
from data.metadata import join_types
from data.order import mix
from data.shards import Blocks, ShardWriter, read_columns, verify_split

COLUMNS = {"score": "float", "stars": "int", "language": "str", "checked": "bool"}
ROWS = [
    {"score": 0.5, "stars": 3, "language": "en", "checked": True},
    {"score": 2, "stars": None, "language": None, "checked": None},
    {"stars": 5, "language": "de", "checked": False, "unknown": "left out"},
]


def write(directory: Path, rows: list[dict], tokens: int = 10, columns: dict | None = None, **options: int) -> Split:
    directory.mkdir(exist_ok=True)
    sizes = {"block_tokens": 1 << 16, "shard_tokens": 1 << 26, **options}
    with ShardWriter(directory, "train", np.dtype(np.uint16), **sizes, columns=columns) as writer:
        for number, row in enumerate(rows):
            about = {"source": f"s{number % 2}", "path": "dump.jsonl", "row": number, "bytes": 4 * tokens}
            ids = mix(np.arange(tokens, dtype=np.uint64), number) % np.uint64(50000)
            writer.add(ids.astype(np.uint16), {**about, **row})
        return writer.finish()


def test_columns_come_back_with_their_gaps(tmp_path):
    split = write(tmp_path, ROWS, columns=COLUMNS)
    found = read_columns(tmp_path, split.shards[0], [*COLUMNS, "row", "tokens", "source"])
    assert np.array_equal(found["score"], [0.5, 2.0, np.nan], equal_nan=True)
    assert np.array_equal(found["stars"], [3, np.nan, 5], equal_nan=True)
    assert list(found["language"]) == ["en", None, "de"] and list(found["checked"]) == [True, None, False]
    assert found["row"].dtype == np.int64 and list(found["row"]) == [0, 1, 2] and list(found["tokens"]) == [10] * 3
    assert split.sources == {"s0": Totals(2, 20, 80), "s1": Totals(1, 10, 40)}
    with pytest.raises(DataError, match="no column 'unknown' of metadata; it has source, path"):
        read_columns(tmp_path, split.shards[0], ["unknown"])


def test_columns_follow_the_shards(tmp_path):
    split = write(tmp_path, [{} for _ in range(30)], block_tokens=20, shard_tokens=70)
    blocks = Blocks(tmp_path, split, "uint16")
    assert len(split.shards) > 3
    rows = np.concatenate([blocks.columns(shard, ["row"])["row"] for shard in range(len(split.shards))])
    assert np.array_equal(rows, np.arange(30))
    assert sum(shard.documents for shard in split.shards) == 30


def test_files_beside_the_tokens_cost_under_five_per_cent(tmp_path):
    """Documents of 800 tokens in shards as they are by default, the metadata that every corpus has and one column."""
    rows = [{"language": "en" if number % 3 else "de"} for number in range(2000)]
    split = write(tmp_path, rows, tokens=800, columns={"language": "str"})
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert on_disk == sum(shard.size + shard.index_size + shard.meta_size for shard in split.shards)
    assert 1.0 < on_disk / (2 * split.tokens) < 1.05


def test_equal_documents_give_equal_files(tmp_path):
    for name in "ab":
        write(tmp_path / name, ROWS, columns=COLUMNS)
    sums = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / name).iterdir()}
        for name in "ab"
    ]
    assert sums[0] == sums[1] and len(sums[0]) == 3


def test_a_token_that_does_not_fit_is_refused(tmp_path):
    with ShardWriter(tmp_path, "train", np.dtype(np.uint16), 100, 100) as writer:
        for wrong in (65536, -1):
            with pytest.raises(DataError, match=r"do not fit uint16 \(0 to 65535\)"):
                writer.add(np.array([1, wrong]), {"source": "s", "path": "p", "row": 0, "bytes": 1})


@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_damaged_metadata_is_named(tmp_path, damage):
    split = write(tmp_path, ROWS)
    path = tmp_path / split.shards[0].meta_file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"missing": b"", "short": data[:-1], "flipped": data}[damage])
    if damage == "missing":
        path.unlink()
    said = {"missing": "is missing", "short": "but the manifest says", "flipped": "checksum is not the manifest's"}
    with pytest.raises(DataError, match=f"{path.name}.*{said[damage]}"):
        verify_split(tmp_path, split)


def test_types_join():
    assert join_types("int", "float") == join_types("float", "int") == "float"
    assert join_types("int", "int") == "int" and join_types("bool", "int") == join_types("str", "float") == "str"


def test_a_corpus_of_format_1_is_refused_with_its_cure(corpus_copy):
    body = json.loads((corpus_copy / MANIFEST).read_text())
    (corpus_copy / MANIFEST).write_text(json.dumps({**body, "format": 1}))
    with pytest.raises(DataError, match=r"of corpus format 1, this version reads format 2; delete .* and build"):
        Manifest.load(corpus_copy)
