"""Corpora of others without conversion: one pass over plain webdataset tars writes a corpus that points into them.

The directory gets what a built corpus has but for the tars: manifest, tokenizer, an index and a table of metadata for each
tar and split. Which split a document belongs to follows from a hash of its contents, as in a build. Documents that lie
twice in the tars are read twice: nothing is taken out of a corpus that is not rewritten (`triaxis data build` does).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import multiprocessing
import os
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import CacheConfig, Entry, FileCache
from data.config import DataError, TokenizerConfig
from data.download import download
from data.manifest import FORMAT, MANIFEST, Manifest, Shard, Split, Totals
from data.members import ARRAYS, DTYPES, Options, Place, places, text_of, tokens_of_text
from data.metadata import MetadataWriter
from data.plain import PLAIN, TARS, write_seen
from data.tar import scan
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer, make_tokenizer
from data.urls import expand, join, scheme

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, note); done and total are tars."""

_HASH_RANGE = 1 << 64


@dataclass(frozen=True)
class IndexConfig:
    """Which tars are indexed, and where the index goes."""

    tars: tuple[str, ...]
    """Paths, directories, globs or URLs of plain .tar files; {000..123} counts, :: joins lists."""

    directory: str
    """Directory that will hold the index, and that a run names as data.path; must not exist yet."""

    text_field: str = "text"
    """Key that holds the text in .json and .jsonl members."""

    member: str = ""
    """Suffix of the members that are documents, where samples have several that could be, for example input_ids.npy."""

    validation_fraction: float = 0.02
    """Share of the documents held out for validation, above 0 and at most 0.5; a hash of the contents decides."""

    workers: int = 0
    """Processes that read tars; 0 = all cores. Has no influence on the result."""

    def __post_init__(self) -> None:
        if not self.tars:
            raise DataError("name at least one tar, directory, glob or URL to index, such as 'tars/{000..123}.tar'")
        if not self.directory:
            raise DataError("--out is empty: name the directory that will hold the index")
        if not 0.0 < self.validation_fraction <= 0.5:
            raise DataError(f"--validation-fraction {self.validation_fraction:g}: must be above 0 and at most 0.5, as 0.02")
        if self.workers < 0:
            raise DataError(f"--workers {self.workers}: must be 0 (all cores) or more")


@dataclass(frozen=True)
class Task:
    """One tar to index. number: of the tar. file: its name below `location`. partial: where indexes are written.
    threshold: documents whose hash is below it are held out."""

    number: int
    location: str
    file: str
    partial: Path
    name: str
    options: Options
    threshold: int
    cache: CacheConfig


@dataclass
class Found:
    """What a tar holds. shards: by split, without what is empty. least: smallest hash of a document. date: ns."""

    shards: dict[str, Shard] = field(default_factory=dict)
    least: int = _HASH_RANGE
    date: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def index(
    config: IndexConfig, tokenizer: TokenizerConfig, cache: CacheConfig | None = None, progress: Progress | None = None
) -> Manifest:
    """Indexes the tars; DataError for every mistake that a person can repair, and then nothing is left behind."""
    directory = Path(config.directory).expanduser().absolute()
    if directory.exists():
        raise DataError(f"--out {config.directory}: is there already; delete it (rm -r {directory}) or name another directory")
    if tokenizer.kind not in ("byte", "file", "sentencepiece", "tiktoken"):
        raise DataError(
            f"tokenizer.kind={tokenizer.kind}: is trained on text, which `triaxis data build` does; to index tars name one that "
            "exists: tokenizer=file tokenizer.path=…, or tokenizer=byte"
        )
    made = make_tokenizer(tokenizer, [])
    location, files = _common(expand(list(config.tars)), directory)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        made.save(partial / TOKENIZER_DIRECTORY)
        options = Options(config.text_field, config.member)
        threshold = int(config.validation_fraction * _HASH_RANGE)
        absolute = location if scheme(location) else str((directory / location).resolve())
        tasks = [
            Task(number, absolute, file, partial, directory.name, options, threshold, cache or CacheConfig())
            for number, file in enumerate(files)
        ]
        found = _with_both_splits(tasks, _run(tasks, config.workers, progress), config)
        manifest = _manifest(config, made, location, found)
        manifest.save(partial)
        write_seen(partial, {tasks[number].file: one.date for number, one in enumerate(found)})
        _publish(partial, directory)
    except OSError as error:
        raise DataError(
            f"--out {config.directory}: cannot write there ({error.strerror or error}); free space, or name another directory"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _common(tars: Sequence[str], directory: Path) -> tuple[str, list[str]]:
    """The place that holds all tars, relative to the index where it is local, and their names below it."""
    schemes = {scheme(tar) for tar in tars}
    if len(schemes) > 1:
        raise DataError(f"tars of one index lie in one place, not in {len(schemes)} kinds of them; index each by itself and mix")
    if schemes == {""}:
        paths = [Path(tar).expanduser().absolute() for tar in tars]
        base = os.path.commonpath([str(path.parent) for path in paths])
        return os.path.relpath(base, directory), [os.path.relpath(path, base) for path in paths]
    parts = [tar.partition("?")[0].split("/")[:-1] for tar in tars]
    shared = os.path.commonprefix(parts)  # of lists: whole names, not letters
    if len(shared) < 3 or any("?" in tar for tar in tars):
        raise DataError(f"{tars[0]}: tars of one index lie on one server, at addresses without a query; index each by itself")
    base = "/".join(shared)
    return base, [tar[len(base) + 1 :] for tar in tars]


def _run(tasks: list[Task], workers: int, progress: Progress | None) -> list[Found]:
    count = min(len(tasks), workers or len(os.sched_getaffinity(0)))
    found: list[Found] = []
    with contextlib.ExitStack() as stack:
        if count > 1:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            results = stack.enter_context(ProcessPoolExecutor(count, mp_context=context)).map(index_tar, tasks)
        else:
            results = map(index_tar, tasks)  # type: ignore[assignment]
        for task, one in zip(tasks, results, strict=True):
            found.append(one)
            if progress:
                progress(len(found), len(tasks), task.file)
    return found


def _with_both_splits(tasks: list[Task], found: list[Found], config: IndexConfig) -> list[Found]:
    """With a document held out at least: where no hash fell below the threshold, the one nearest to it."""
    documents = sum(shard.documents for one in found for shard in one.shards.values())
    if documents < 2:
        left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(_skipped(found).items()))
        raise DataError(
            f"{', '.join(config.tars)}: {documents} usable document(s){f' ({left_out} left out)' if left_out else ''}, but a corpus "
            "needs one for training and one for validation; documents are members that end in .npy, .txt, .jsonl or .json"
        )
    if not any("validation" in one.shards for one in found):
        number = min(range(len(found)), key=lambda number: found[number].least)
        found[number] = index_tar(replace(tasks[number], threshold=found[number].least + 1))
    if not any("train" in one.shards for one in found):
        raise DataError(f"{', '.join(config.tars)}: all documents fell to validation; lower --validation-fraction")
    return found


def _skipped(found: list[Found]) -> Counter[str]:
    return sum((one.skipped for one in found), Counter())


def _manifest(config: IndexConfig, tokenizer: Tokenizer, location: str, found: list[Found]) -> Manifest:
    options = Options(config.text_field, config.member)
    return Manifest(
        name=Path(config.directory).name,
        spec={
            "format": FORMAT,
            PLAIN: {"options": asdict(options), "validation_fraction": config.validation_fraction},
            TARS: location,
        },
        tokenizer_kind=tokenizer.kind,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        dtype=tokenizer.dtype.name,
        columns={},
        splits={
            name: Split(tuple(one.shards[name] for one in found if name in one.shards)) for name in ("train", "validation")
        },
        baselines=None,
        skipped=dict(sorted(_skipped(found).items())),
        provenance={"python": platform.python_version(), "numpy": np.__version__},
    )


def _publish(partial: Path, directory: Path) -> None:
    """Makes the finished directory visible in one step that survives a power cut."""
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.rename(partial, directory)


def index_tar(task: Task) -> Found:
    """One pass over one tar: its indexes and metadata, by split."""
    where = join(task.location, task.file) if scheme(task.location) else str(Path(task.location) / task.file)
    with _local(task, where) as path, path.open("rb") as file:
        size, date = os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_mtime_ns
        if size == 0:
            raise DataError(f"{where}: empty, and no tar; copy it again, or take it out")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = Found(date=date)
            writers = {split: _SplitWriter(task, split) for split in ("train", "validation")}
            tokenizer = Tokenizer.load(task.partial / TOKENIZER_DIRECTORY)
            for place, tokens, text_bytes, digest in _documents(task, data, where, tokenizer, found.skipped):
                found.least = min(found.least, digest)
                writers["validation" if digest < task.threshold else "train"].add(place, tokens, text_bytes)
            sha256 = hashlib.sha256(data).hexdigest()
        if size != path.stat().st_size:
            raise DataError(f"{where}: was changed while it was read; index again when it is finished")
    if scheme(task.location):  # training will want it: it need not come twice
        with contextlib.suppress(DataError):
            entry = Entry(where, size, sha256)
            FileCache(task.cache).hold(entry, lambda part: os.replace(path, part)).close()
    for split, writer in writers.items():
        if writer.ends:
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
        # left open for who maps it; what is moved into the cache keeps its inode
        yield path


def _documents(
    task: Task, data: mmap.mmap, where: str, tokenizer: Tokenizer, skipped: Counter[str]
) -> Iterator[tuple[Place, int, int, int]]:
    """(place, tokens with `eod`, UTF-8 bytes of its text, hash) of every document that is not left out."""
    sizes = _bytes_of_ids(tokenizer)
    view = memoryview(data)
    try:
        for place in places(scan(data, where), data, task.options, where, skipped):
            payload = view[place.offset : place.offset + place.size]
            if place.kind >= ARRAYS:
                tokens = np.frombuffer(payload, DTYPES[place.kind - ARRAYS])
                if not len(tokens):
                    skipped["empty"] += 1
                    continue
                _check_range(tokens, tokenizer, f"{where}, member {place.member!r}")
                count, text_bytes = len(tokens) + (int(tokens[-1]) != tokenizer.eod), int(sizes[tokens].sum())
                digest = hashlib.blake2b(payload, digest_size=16).digest()
            else:
                text = text_of(place.kind, bytes(payload), task.options, f"{where}, member {place.member!r}, line {place.row + 1}")
                if text is None or not text.strip():
                    skipped["undecodable" if text is None else "empty"] += 1
                    continue
                encoded = text.encode()
                count, text_bytes = len(tokens_of_text(text, tokenizer)), len(encoded)
                digest = hashlib.blake2b(encoded, digest_size=16).digest()
            payload.release()
            yield place, count, text_bytes, int.from_bytes(digest[:8], "little")
    finally:
        tokens = payload = None  # type: ignore[assignment]
        del view


def _check_range(tokens: np.ndarray, tokenizer: Tokenizer, where: str) -> None:
    low, high = int(np.minimum.reduce(tokens)) if tokens.dtype.kind == "i" else 0, int(np.maximum.reduce(tokens))
    if low < 0 or high >= tokenizer.vocab_size:
        raise DataError(
            f"{where}: tokens from {low} to {high}, but the tokenizer has the ids 0 to {tokenizer.vocab_size - 1}; name the "
            "tokenizer that they were made with (tokenizer=file tokenizer.path=…)"
        )


def _bytes_of_ids(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each id stands for, int64 [vocabulary], for documents whose text is not there: exact for byte-level
    tokenizers, which spell every byte as one character, near it for others."""
    return np.array([tokenizer.bytes_of(number) for number in range(tokenizer.vocab_size)], np.int64)


class _SplitWriter:
    """Gathers the documents of one tar that belong to one split."""

    def __init__(self, task: Task, split: str) -> None:
        self._task, self._path = task, task.partial / f"{split}-{task.number:05d}.tar"
        self.rows: tuple[list[int], list[int], list[int]] = ([], [], [])
        self.ends: list[int] = []
        self._meta = MetadataWriter({})

    def add(self, place: Place, tokens: int, text_bytes: int) -> None:
        for column, value in zip(self.rows, (place.offset, place.size, place.kind), strict=True):
            column.append(value)
        self.ends.append((self.ends[-1] if self.ends else 0) + tokens)
        row = {"source": self._task.name, "path": f"{self._task.file}/{place.member}", "row": place.row, "bytes": text_bytes}
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
