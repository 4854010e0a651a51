"""Orderings: every document once, as the method says, the same bytes again, and never for another corpus."""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data.config import DataError, TokenizerConfig
from data.documents import Documents
from data.index import IndexConfig, index
from data.inspect import describe
from data.orderings import METHODS, load, make, names
from data.orderings.chain import heavy_path
from data.orderings.embed import Embedder, Vectors, quantise
from data.orderings.nearest import neighbours
from data.orderings.simple import Shuffle
from data.progress import silent
from data.tokenizers import load_corpus_tokenizer

WORDS = """
cooking oven butter flour sugar bake whisk pan dough salt pepper simmer garlic onion recipe spoon
sailing mast sail rudder harbour tide anchor wind keel deck rope buoy helm jib knot starboard
algebra ring field ideal module kernel lemma proof group matrix vector theorem basis rank trace map
garden seed soil compost rose prune leaf root water sun hedge lawn tulip spade weed bloom
"""
TOPICS = {line.split()[0]: line.split()[1:] for line in WORDS.strip().splitlines()}
SMALL = {"dimensions": 256}
OPTIONS = {
    "shuffle": {},
    "length": {},
    "neighbours": SMALL | {"neighbours": 5},
    "clusters": SMALL | {"clusters": 4},
    "difficulty": {"column": "bytes"},
}


@pytest.fixture(scope="module")
def topical(tmp_path_factory, build_small) -> Path:
    """160 documents of four topics, shuffled: a document's topic is in its path."""
    place = tmp_path_factory.mktemp("topics")
    draw = random.Random(1)
    topics = [*TOPICS] * 40
    draw.shuffle(topics)
    for number, topic in enumerate(topics):
        words = draw.choices(TOPICS[topic], k=draw.randint(20, 120))
        (place / f"{number:03d}_{topic}.txt").write_text(f"{number} " + " ".join(words))
    build_small(place.parent / f"{place.name}_corpus", sources=(str(place),))
    return place.parent / f"{place.name}_corpus"


@pytest.fixture
def corpus(topical, tmp_path) -> Path:
    return Path(shutil.copytree(topical, tmp_path / "corpus"))


def topics_of(documents: Documents) -> np.ndarray:
    codes, words = documents.labels("path")
    return np.array([Path(words[code]).stem.split("_")[1] for code in codes])


@pytest.mark.parametrize("by", METHODS)
def test_every_document_once_and_the_same_bytes_again(corpus, by):
    made, new = make(corpus, "one", by, METHODS[by](**OPTIONS[by]), ("train", "validation"))
    assert new
    for split in ("train", "validation"):
        assert np.array_equal(np.sort(made.numbers(split)), np.arange(len(Documents(corpus, split))))
    first = {file.name: file.read_bytes() for file in made.path.iterdir()}
    assert not make(corpus, "one", by, METHODS[by](**OPTIONS[by]), ("train", "validation"))[1]
    shutil.rmtree(made.path)
    make(corpus, "one", by, METHODS[by](**OPTIONS[by]), ("train", "validation"))
    assert {file.name: file.read_bytes() for file in made.path.iterdir()} == first
    assert names(corpus) == ["one"]
    assert not [path for path in corpus.rglob(".*") if path.name != ".lock"], "scratch is left"
    assert np.array_equal(load(corpus, "one").numbers("train"), made.numbers("train"))


@pytest.mark.parametrize("by", ["shuffle", "length", "clusters"])
def test_a_seed_gives_another_order(corpus, by):
    orders = [
        make(corpus, f"s{seed}", by, METHODS[by](**OPTIONS[by], seed=seed))[0].numbers("train") for seed in (0, 1)
    ]
    assert not np.array_equal(*orders)


def test_length_sorts_buckets_and_shuffles_within(corpus):
    lengths = Documents(corpus).lengths()
    exact = lengths[make(corpus, "exact", "length", METHODS["length"](ratio=1))[0].numbers("train")]
    assert (np.diff(exact) >= 0).all()
    down = lengths[make(corpus, "down", "length", METHODS["length"](ratio=1, descending=True))[0].numbers("train")]
    assert (np.diff(down) <= 0).all()
    found = make(corpus, "powers", "length", METHODS["length"]())[0]
    powers = np.floor(np.log2(lengths[found.numbers("train")]))
    assert (np.diff(powers) >= 0).all() and (np.diff(lengths[found.numbers("train")]) < 0).any()
    buckets = found.splits["train"]["measured"]["buckets"]
    assert sum(bucket["documents"] for bucket in buckets) == len(lengths)
    assert sum(bucket["tokens"] for bucket in buckets) == lengths.sum()


def test_borders_of_buckets_are_exact():
    from data.orderings.simple import _powers

    assert _powers(np.array([1, 2, 3, 4, 7, 8, 1023, 1024, 1025]), 2.0).tolist() == [0, 1, 1, 2, 2, 3, 9, 10, 10]
    assert _powers(np.array([2, 3, 8, 9, 26, 27, 242, 243]), 3.0).tolist() == [0, 1, 1, 2, 2, 3, 4, 5]


def test_neighbours_follow_one_another_far_more_alike_than_by_chance(corpus):
    found = make(corpus, "chain", "neighbours", METHODS["neighbours"](**OPTIONS["neighbours"]))[0]
    measured = found.splits["train"]["measured"]
    assert measured["similarity"] > 3 * measured["similarity_random"] > 0
    topics = topics_of(Documents(corpus))[found.numbers("train")]
    assert (topics[1:] == topics[:-1]).mean() > 0.75  # 0.25 by chance


def test_clusters_are_the_topics(corpus):
    found = make(corpus, "kinds", "clusters", METHODS["clusters"](**OPTIONS["clusters"], seed=3))[0]
    documents = Documents(corpus)
    cluster, topics = documents.numbers("kinds.cluster").astype(int), topics_of(documents)
    pure = sum(max(np.sum(topics[cluster == number] == topic) for topic in TOPICS) for number in range(4))
    assert pure / len(topics) > 0.7
    assert (np.diff(cluster[found.numbers("train")]) >= 0).all()
    about = found.splits["train"]["measured"]["clusters"]
    assert [one["documents"] for one in about] == np.bincount(cluster, minlength=4).tolist()
    assert all(cluster[one["nearest"][0]] == number for number, one in enumerate(about) if one["documents"])

    mixed = make(corpus, "mixed", "clusters", METHODS["clusters"](**OPTIONS["clusters"], seed=3, layout="interleaved"))[
        0
    ]
    in_order = cluster[mixed.numbers("train")]
    half = np.bincount(in_order[: len(in_order) // 2], minlength=4)
    assert np.abs(half - np.bincount(cluster, minlength=4) / 2).max() <= 1

    fewer = make(corpus, "fewer", "clusters", METHODS["clusters"](**OPTIONS["clusters"], seed=3, drop=(1, 2)))[0]
    left = fewer.numbers("train")
    assert set(cluster[left]) == {0, 3} and len(left) == np.isin(cluster, (0, 3)).sum()
    assert fewer.splits["train"]["of_documents"] == len(documents) > fewer.splits["train"]["documents"]


def test_difficulty_is_monotone_in_its_column(corpus):
    values = Documents(corpus).numbers("bytes")
    up = make(corpus, "up", "difficulty", METHODS["difficulty"](column="bytes"))[0].numbers("train")
    assert (np.diff(values[up]) >= 0).all()
    down = make(corpus, "down", "difficulty", METHODS["difficulty"](column="bytes", descending=True))[0].numbers(
        "train"
    )
    assert (np.diff(values[down]) <= 0).all()
    make(corpus, "kinds", "clusters", METHODS["clusters"](**OPTIONS["clusters"]))
    typical = make(corpus, "typical", "difficulty", METHODS["difficulty"](column="kinds.to_centre"))[0].numbers("train")
    assert (np.diff(Documents(corpus).numbers("kinds.to_centre")[typical]) >= 0).all()


def test_documents_without_a_value(corpus):
    method = METHODS["difficulty"]
    values = np.array([3.0, np.nan, 1.0, np.inf, 2.0])
    assert method(column="x", missing="drop").order(values).numbers.tolist() == [2, 4, 0]
    last = method(column="x", missing="last").order(values).numbers
    assert last[:3].tolist() == [2, 4, 0] and sorted(last[3:]) == [1, 3]
    with pytest.raises(DataError, match="2 of 5 documents have no finite value; set --missing=last"):
        method(column="x").order(values)


def test_the_path_goes_on_to_the_nearest_unvisited_and_begins_at_the_least_degree():
    # 0-1-2 is a line with 1-2 heavier, 3-4 a pair, 5 alone.
    numbers = np.array([[1, -1], [2, 0], [1, -1], [4, -1], [3, -1], [-1, -1]], np.int32)
    cosines = np.array([[0.2, 0], [0.9, 0.2], [0.9, 0], [0.5, 0], [0.5, 0], [0, 0]], np.float32)
    path, chains = heavy_path(numbers, cosines, silent)
    assert path.tolist() == [5, 0, 1, 2, 3, 4] and chains == 3


def clouds(count: int, dimensions: int = 64) -> Vectors:
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(12, dimensions))
    return Vectors(quantise(centres[draw.integers(12, size=count)] + 0.7 * draw.normal(size=(count, dimensions))))


def test_exact_neighbours_are_those_of_the_definition():
    vectors = clouds(700)
    values = vectors.values.astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosine = values @ values.T
    np.fill_diagonal(cosine, 0)
    numbers, found = neighbours(vectors, 7, 1000, 1, silent)
    assert np.allclose(found, -np.sort(-cosine, axis=1)[:, :7], atol=1e-6)
    assert np.allclose(np.take_along_axis(cosine, numbers.astype(int), 1), found, atol=1e-6)
    assert (numbers != np.arange(700)[:, None]).all()


def test_the_inverted_file_finds_nearly_all_of_them():
    vectors = clouds(3000)
    exact = neighbours(vectors, 10, 3000, 1, silent)[0]
    near = neighbours(vectors, 10, 0, 8, silent)[0]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact, near, strict=True)])
    assert recall > 0.9
    every = neighbours(vectors, 10, 0, 3000, silent)[0]
    assert np.array_equal(every, exact), "all lists probed is exact"


def test_nothing_in_common_is_no_neighbour():
    vectors = Vectors(np.zeros((5, 16), np.int8))
    numbers, cosines = neighbours(vectors, 3, 10, 1, silent)
    assert (numbers == -1).all() and (cosines == 0).all()
    assert sorted(heavy_path(numbers, cosines, silent)[0].tolist()) == list(range(5))


def test_vectors_are_near_the_cosines_of_tf_idf(topical, tmp_path):
    documents = Documents(topical)
    embedder = Embedder(1024, 5, 4096, 0)
    vectors = embedder.embed(documents, tmp_path / "v.npy", silent)
    idf = embedder._rarity(documents, silent)
    rows = np.zeros((len(documents), len(idf)), np.float32)
    for chunk in documents.chunks():
        number, feature, count = embedder._features(chunk)
        rows[chunk.first + number, feature] = (1 + np.log(count)) * idf[feature]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    everyone = np.arange(len(documents))
    error = vectors.cosines(everyone, everyone) - rows @ rows.T
    assert np.abs(error).mean() < 0.04 and np.abs(error).max() < 0.2  # 1 / sqrt(1024) is 0.03


def test_a_corpus_built_anew_refuses_old_orderings(corpus, build_small, tmp_path):
    make(corpus, "old", "shuffle", METHODS["shuffle"]())
    other = tmp_path / "other"
    build_small(other)
    shutil.copytree(corpus / "orders", other / "orders")
    with pytest.raises(DataError, match=r"made for another corpus.*rm -r"):
        load(other, "old")
    assert "ordering   old: NOT USABLE" in describe(other)
    with pytest.raises(DataError, match="made for another corpus"):
        make(other, "old", "shuffle", METHODS["shuffle"]())


def test_damage_is_named(corpus):
    made = make(corpus, "one", "shuffle", METHODS["shuffle"]())[0]
    file = made.path / "train.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"train\.npy: its checksum"):
        load(corpus, "one").numbers("train")
    file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        load(corpus, "one").numbers("train")
    with pytest.raises(DataError, match="no ordering of validation"):
        load(corpus, "one").numbers("validation")
    about = json.loads((made.path / "order.json").read_text())
    (made.path / "order.json").write_text(json.dumps(about | {"method": "length"}))
    with pytest.raises(DataError, match="was changed after it was written"):
        load(corpus, "one")
    (made.path / "order.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load(corpus, "one")


def test_another_ordering_is_never_overwritten(corpus):
    made = make(corpus, "one", "length", METHODS["length"]())[0]
    before = (made.path / "train.npy").read_bytes()
    with pytest.raises(DataError, match=r"ratio was 2.0, now 3.0"):
        make(corpus, "one", "length", METHODS["length"](ratio=3.0))
    with pytest.raises(DataError, match="method was 'length', now 'shuffle'"):
        make(corpus, "one", "shuffle", METHODS["shuffle"]())
    assert (made.path / "train.npy").read_bytes() == before


MISTAKES = [
    ("length", {"ratio": 0.5}, "--ratio=0.5"),
    ("neighbours", {"neighbours": 0}, "--neighbours=0: must be at least 1"),
    ("neighbours", {"dimensions": 3}, "--dimensions=3"),
    ("neighbours", {"exact_up_to": -1}, "--exact-up-to=-1"),
    ("clusters", {"clusters": 1}, "--clusters=1"),
    ("clusters", {"clusters": 4, "drop": (4,)}, "--drop=4: clusters are numbered from 0 to 3"),
    ("clusters", {"clusters": 2, "drop": (0, 1)}, "nothing would be left"),
    ("clusters", {"clusters": 90}, "so at most"),
    ("clusters", {"layout": "rows"}, "--layout=rows"),
    ("difficulty", {}, "one of the two"),
    ("difficulty", {"column": "bytes", "run": "runs/x"}, "one of the two"),
    ("difficulty", {"column": "sweetness"}, "column sweetness .* is not there"),
    ("difficulty", {"column": "source"}, "holds str, not numbers; choose one of row, bytes"),
    ("difficulty", {"column": "bytes", "missing": "no"}, "--missing=no"),
]


@pytest.mark.parametrize(("by", "options", "told"), MISTAKES)
def test_bad_options_are_one_message_and_leave_nothing(corpus, by, options, told):
    with pytest.raises(DataError, match=told):
        make(corpus, "bad", by, METHODS[by](**options))
    assert names(corpus) == []


@pytest.mark.parametrize("name", ["", "../up", "a b", ".hidden", "a/b"])
def test_names_are_plain(corpus, name):
    with pytest.raises(DataError, match="--name"):
        make(corpus, name, "shuffle", METHODS["shuffle"]())


def test_columns_of_an_ordering_are_read_as_columns_of_the_corpus(corpus):
    made = make(corpus, "kinds", "clusters", METHODS["clusters"](**OPTIONS["clusters"]))[0]
    stored = pq.read_table(made.path / "train.columns.parquet")["cluster"].to_pylist()
    documents = Documents(corpus)
    assert documents.numbers("kinds.cluster").tolist() == stored
    assert {"source", "bytes", "kinds.cluster"} <= set(documents.columns())


def test_documents_are_read_as_they_were_written(corpus):
    documents = Documents(corpus)
    lengths = documents.lengths()
    assert len(lengths) == len(documents) and lengths.sum() == documents.tokens
    seen = [(chunk.first + i, chunk.document(i)) for chunk in documents.chunks() for i in range(len(chunk))]
    assert [number for number, _ in seen] == list(range(len(documents)))
    for number, tokens in seen[:: max(1, len(seen) // 9)]:
        assert np.array_equal(tokens, documents.document(number)) and tokens[-1] == documents.manifest.eod
        assert len(tokens) == lengths[number] == documents.starts()[number + 1] - documents.starts()[number]
    assert np.array_equal(documents.numbers("bytes") + 1, lengths), "bytes as tokens, and the end of the document"


def test_tars_of_others_are_ordered_in_place(tmp_path):
    (tmp_path / "tars").mkdir()
    draw = random.Random(2)
    for number in range(2):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for place in range(30):
                body = f"{number} {place} {' '.join(draw.choices(TOPICS['garden'], k=draw.randint(1, 40)))}".encode()
                member = tarfile.TarInfo(f"{place:03d}.txt")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    config = IndexConfig((str(tmp_path / "tars"),), str(tmp_path / "corpus"), validation_fraction=0.1, workers=1)
    index(config, TokenizerConfig("byte"))
    documents = Documents(tmp_path / "corpus")
    for by, options in (("length", {"ratio": 1.0}), ("neighbours", SMALL)):
        numbers = make(tmp_path / "corpus", by, by, METHODS[by](**options))[0].numbers("train")
        assert np.array_equal(np.sort(numbers), np.arange(len(documents)))
    lengths = documents.lengths()[load(tmp_path / "corpus", "length").numbers("train")]
    assert (np.diff(lengths) >= 0).all()


@pytest.mark.parametrize("unit", ["words", "tokens"])
def test_budgets_take_the_first_documents_of_the_shuffle(byte_corpus, unit):
    documents, order = Documents(byte_corpus), Shuffle(3)(Documents(byte_corpus), silent).numbers
    tokenizer = load_corpus_tokenizer(byte_corpus)

    def size(number: int) -> int:
        tokens = documents.document(number)
        return len(tokens) if unit == "tokens" else len(tokenizer.decode(tokens[:-1]).split())

    sizes = np.cumsum([size(number) for number in order.tolist()])
    for limit in (int(sizes[4]), int(sizes[4]) + 1, int(sizes[-1]) + 5):
        found = Shuffle(3, **{unit: limit})(documents, silent)
        kept = int((sizes <= limit).sum())
        assert np.array_equal(found.numbers, order[:kept]) and found.measured == {unit: int(sizes[kept - 1])}
    with pytest.raises(DataError, match="the first document has more"):
        Shuffle(3, **{unit: 1})(documents, silent)
    with pytest.raises(DataError, match="one budget is enough"):
        Shuffle(3, words=5, tokens=5)
