"""One pass over one tar of others: where its documents are, how many tokens each has, and which split each belongs to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.cache import Entry, FileCache, NoRoomError
from data.config import DataError
from data.document import Scalar
from data.download import download
from data.manifest import Shard, Totals
from data.members import ARRAYS, DTYPES, Options, Place, places, text_of, tokens_of_text
from data.metadata import MetadataWriter, Schema, type_of
from data.sources.records import Fields, columns_of
from data.spelling import bytes_of
from data.stream_config import CacheConfig
from data.tar import scan
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer
from data.urls import join, scheme

HASH_RANGE = 1 << 64
SAMPLE = 1000
"""Texts on which a tokenizer's fast way is tried."""


@dataclass(frozen=True)
class Task:
    """One tar to index. number: of the tar. file: its name below `location`. partial: where indexes are written.
    fields: what becomes metadata. threshold: documents whose hash is below it are held out."""

    number: int
    location: str
    file: str
    partial: Path
    name: str
    options: Options
    fields: Fields
    threshold: int
    cache: CacheConfig


@dataclass
class Found:
    """What a tar holds. shards: by split, without what is empty. columns: their types, by split. least: smallest hash of a
    document. date: ns."""

    shards: dict[str, Shard] = field(default_factory=dict)
    columns: dict[str, Schema] = field(default_factory=dict)
    least: int = HASH_RANGE
    date: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def index_tar(task: Task) -> Found:
    """One pass over one tar: its indexes and metadata, by split."""
    where = join(task.location, task.file) if scheme(task.location) else str(Path(task.location) / task.file)
    with _local(task, where) as path, path.open("rb") as file:
        size, date = os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_mtime_ns
        if size == 0:
            raise DataError(f"{where}: empty, and no tar; copy it again, or take it out")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last view of it
        found = Found(date=date)
        writers = {split: _SplitWriter(task, split) for split in ("train", "validation")}
        tokenizer = Tokenizer.load(task.partial / TOKENIZER_DIRECTORY)
        for place, tokens, text_bytes, digest in _documents(task, data, where, tokenizer, found.skipped):
            found.least = min(found.least, digest)
            split = "validation" if digest < task.threshold else "train"
            writers[split].add(place, tokens, text_bytes, _columns(task, data, place, where))
        sha256 = hashlib.sha256(data).hexdigest()
        if size != path.stat().st_size:
            raise DataError(f"{where}: was changed while it was read; index again when it is finished")
        if scheme(task.location) and size <= task.cache.limit:  # training will want it: it need not come twice
            entry = Entry(where, size, sha256)
            with contextlib.suppress(NoRoomError):
                FileCache(task.cache).hold(
                    entry, lambda part: os.replace(path, part), ahead=lambda: (entry,), urgent=False
                ).close()
    for split, writer in writers.items():
        if writer.ends:
            found.columns[split] = writer.columns
            found.shards[split] = writer.finish(size, sha256)
    return found


@contextmanager
def _local(task: Task, where: str) -> Iterator[Path]:
    """The tar as a local file; one from elsewhere is there until the block ends."""
    if not scheme(task.location):
        path = Path(where)
        if not path.is_file():
            raise DataError(f"{where}: no such file; correct the path")
        yield path
        return
    root = FileCache(task.cache).root
    with tempfile.TemporaryDirectory(prefix=".indexing-", dir=root) as scratch:
        path = Path(scratch) / "tar"
        download(where, path, task.cache)
        yield path


def _documents(
    task: Task, data: mmap.mmap, where: str, tokenizer: Tokenizer, skipped: Counter[str]
) -> Iterator[tuple[Place, int, int, int]]:
    """(place, tokens with `eod`, UTF-8 bytes of its text, hash) of every document that is not left out."""
    sizes, view = _bytes_of_ids(tokenizer), memoryview(data)
    for place in places(scan(data, where), data, task.options, where, skipped):
        payload = view[place.offset : place.offset + place.size]
        if place.kind >= ARRAYS:
            tokens = np.frombuffer(payload, DTYPES[place.kind - ARRAYS])
            if not len(tokens):
                skipped["empty"] += 1
                continue
            _check_range(tokens, tokenizer, where, place.member)
            count, text_bytes = (
                len(tokens) + (int(tokens[-1]) != tokenizer.eod),
                int(sizes.take(tokens).sum(dtype=np.int64)),
            )
            digest = hashlib.blake2b(payload, digest_size=16).digest()
        else:
            text = text_of(
                place.kind, bytes(payload), task.options, f"{where}, member {place.member!r}, line {place.row + 1}"
            )
            if text is None or not text.strip():
                skipped["undecodable" if text is None else "empty"] += 1
                continue
            encoded = text.encode()
            count, text_bytes = len(tokens_of_text(text, tokenizer)), len(encoded)
            digest = hashlib.blake2b(encoded, digest_size=16).digest()
        yield place, count, text_bytes, int.from_bytes(digest[:8], "little")


def _columns(task: Task, data: mmap.mmap, place: Place, where: str) -> dict[str, Scalar]:
    """What the JSON of a document, or beside it, says of it."""
    offset, size = place.about
    if not size or not task.fields.columns:
        return {}
    try:
        values = json.loads(data[offset : offset + size])
    except ValueError as error:
        raise DataError(
            f"{where}: the .json of {place.member!r} is no JSON ({error}); repair it, or leave metadata alone by --columns ''"
        ) from error
    return columns_of(values, task.fields) if isinstance(values, dict) else {}


def _check_range(tokens: np.ndarray, tokenizer: Tokenizer, where: str, name: str) -> None:
    high = int(np.maximum.reduce(tokens))
    low = int(np.minimum.reduce(tokens)) if tokens.dtype.kind == "i" else 0
    if low < 0 or high >= tokenizer.vocab_size:
        raise DataError(
            f"{where}, member {name!r}: has the token {low if low < 0 else high}, but the tokenizer the ids 0 to "
            f"{tokenizer.vocab_size - 1}; name the tokenizer that the tokens were made with (tokenizer=file tokenizer.path=…)"
        )


def _bytes_of_ids(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each id stands for, at most 255, uint8 [vocabulary]: for documents whose text is not there."""
    try:
        spelt = bytes_of(tokenizer)
    except DataError:  # a SentencePiece model

        def spelt(id_: int) -> bytes:
            return tokenizer.decode([id_]).encode()

    return np.array(
        [0 if id_ == tokenizer.eod else min(255, len(spelt(id_))) for id_ in range(tokenizer.vocab_size)], np.uint8
    )


def sample_of(tar: Path, options: Options) -> list[str]:
    """Some texts of a tar, for a tokenizer to try its fast way on."""
    texts: list[str] = []
    with tar.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return texts
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for place in places(scan(data, str(tar)), data, options, str(tar), Counter()):
        if place.kind < ARRAYS and len(texts) < SAMPLE:
            payload = data[place.offset : place.offset + place.size]
            texts.append(
                text_of(place.kind, payload, options, f"{tar}, member {place.member!r}, line {place.row + 1}") or ""
            )
    return texts


class _SplitWriter:
    """Gathers the documents of one tar that belong to one split."""

    def __init__(self, task: Task, split: str) -> None:
        self._task, self._path = task, task.partial / f"{split}-{task.number:05d}.tar"
        self.rows: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.ends: list[int] = []
        self._meta = MetadataWriter({})

    @property
    def columns(self) -> Schema:
        return self._meta.columns

    def add(self, place: Place, tokens: int, text_bytes: int, columns: dict[str, Scalar]) -> None:
        for column, value in zip(self.rows, (place.offset, place.size, place.kind), strict=True):
            column.append(value)
        self.ends.append((self.ends[-1] if self.ends else 0) + tokens)
        self._meta.widen({name: kind for name, value in columns.items() if (kind := type_of(value))})
        row = {
            **columns,
            "source": self._task.name,
            "path": f"{self._task.file}/{place.member}",
            "row": place.row,
            "bytes": text_bytes,
        }
        self._meta.add(row, tokens)

    def finish(self, size: int, sha256: str) -> Shard:
        """Writes index and table; size and sha256: of the tar."""
        offsets, sizes, kinds = self.rows
        path = self._path.with_suffix(".idx.npy")
        np.save(path, np.array([offsets, sizes, self.ends, kinds], np.int64))
        described, sources = self._meta.write(self._path)
        contents = path.read_bytes()
        return Shard(
            file=self._task.file,
            size=size,
            sha256=sha256,
            index_file=path.name,
            index_size=len(contents),
            index_sha256=hashlib.sha256(contents).hexdigest(),
            meta_file=described.path.name,
            meta_size=described.position,
            meta_sha256=described.hash.hexdigest(),
            blocks=len(self.ends),
            sources={name: Totals(*totals) for name, totals in sources.items()},
        )
