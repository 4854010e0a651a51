"""Corpora of others without conversion: one pass over plain webdataset tars writes a corpus that points into them.

The directory gets what a built corpus has but for the tars: manifest, tokenizer, an index and a table of metadata for each
tar and split. Which split a document belongs to follows from a hash of its contents, as in a build. Documents that lie
twice in the tars are read twice: nothing is taken out of a corpus that is not rewritten (`triaxis data build` does).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from data.config import DataError, TokenizerConfig
from data.index_tar import HASH_RANGE, Found, Task, index_tar, sample_of
from data.manifest import FORMAT, Manifest, Split
from data.members import Options
from data.metadata import Schema, join_types, widen_table
from data.plain import PLAIN, TARS, write_seen
from data.progress import Progress
from data.sources.records import Fields
from data.stream_config import CacheConfig
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer, make_tokenizer
from data.urls import expand, scheme


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

    columns: tuple[str, ...] = ("*",)
    """Which other fields of JSON, of the document or of a .json member beside it, become columns of its metadata; as
    `corpus.columns` of a build."""

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
            raise DataError(
                f"--validation-fraction {self.validation_fraction:g}: must be above 0 and at most 0.5, as 0.02"
            )
        if self.workers < 0:
            raise DataError(f"--workers {self.workers}: must be 0 (all cores) or more")


def index(
    config: IndexConfig, tokenizer: TokenizerConfig, cache: CacheConfig | None = None, progress: Progress | None = None
) -> Manifest:
    """Indexes the tars; DataError for every mistake that a person can repair, and then nothing is left behind."""
    directory = Path(config.directory).expanduser().absolute()
    if directory.exists():
        raise DataError(
            f"--out {config.directory}: is there already; delete it (rm -r {directory}) or name another directory"
        )
    if tokenizer.trained:
        raise DataError(
            f"tokenizer.kind={tokenizer.kind}: is trained on text, which `triaxis data build` does; to index tars name one "
            "that exists: tokenizer=file tokenizer.path=…, or tokenizer=byte"
        )
    location, files = _common(expand(list(config.tars)), directory)
    partial = directory.with_name(f".{directory.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        options = Options(config.text_field, config.member)
        fields = Fields(config.text_field, config.columns)
        threshold = int(config.validation_fraction * HASH_RANGE)
        absolute = location if scheme(location) else str((directory / location).resolve())
        made = _tokenizer(tokenizer, Path(absolute) / files[0], options, partial)
        tasks = [
            Task(number, absolute, file, partial, directory.name, options, fields, threshold, cache or CacheConfig())
            for number, file in enumerate(files)
        ]
        found = _with_both_splits(tasks, _run(tasks, config.workers, progress), config)
        columns = _same_columns(found, partial)
        manifest = _manifest(config, made, location, columns, found)
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


def _tokenizer(config: TokenizerConfig, tar: Path, options: Options, partial: Path) -> Tokenizer:
    """The tokenizer, written beside the index. Its fast way is taken where texts of the first tar are at hand to try it."""
    texts = sample_of(tar, options) if tar.is_file() else []
    made = make_tokenizer(config, texts)
    if not any(texts):
        made.fast = ""
    made.save(partial / TOKENIZER_DIRECTORY)
    return made


def _common(tars: Sequence[str], directory: Path) -> tuple[str, list[str]]:
    """The place that holds all tars, relative to the index where it is local, and their names below it."""
    schemes = {scheme(tar) for tar in tars}
    if len(schemes) > 1:
        raise DataError(
            f"tars of one index lie in one place, not in {len(schemes)} kinds of them; index each by itself and mix"
        )
    if schemes == {""}:
        paths = [Path(tar).expanduser().absolute() for tar in tars]
        base = os.path.commonpath([str(path.parent) for path in paths])
        return os.path.relpath(base, directory), [os.path.relpath(path, base) for path in paths]
    parts = [tar.partition("?")[0].split("/")[:-1] for tar in tars]
    shared = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    if len(shared) < 3 or any("?" in tar for tar in tars):
        raise DataError(
            f"{tars[0]}: tars of one index lie on one server, at addresses without a query; index each by itself"
        )
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
        usable = f"{documents} usable document(s){f' ({left_out} left out)' if left_out else ''}"
        raise DataError(
            f"{', '.join(config.tars)}: {usable}, but a corpus needs one for training and one for validation; "
            "documents are members that end in .npy, .txt, .jsonl or .json"
        )
    if not any("validation" in one.shards for one in found):
        number = min(range(len(found)), key=lambda number: found[number].least)
        found[number] = index_tar(replace(tasks[number], threshold=found[number].least + 1))
    if not any("train" in one.shards for one in found):
        raise DataError(f"{', '.join(config.tars)}: all documents fell to validation; lower --validation-fraction")
    return found


def _same_columns(found: list[Found], partial: Path) -> Schema:
    """Types of all columns; tables that lack one, or have a narrower type, are written again."""
    every: dict[str, str] = {}
    for one in found:
        for name, kind in (pair for columns in one.columns.values() for pair in columns.items()):
            every[name] = join_types(every.get(name, kind), kind)
    for one in found:
        for split, shard in one.shards.items():
            if one.columns[split] != every:
                file = widen_table(partial / shard.meta_file, every)
                digest = file.hash.hexdigest()
                one.shards[split] = replace(shard, meta_size=file.position, meta_sha256=digest)
    return every


def _skipped(found: list[Found]) -> Counter[str]:
    return sum((one.skipped for one in found), Counter())


def _manifest(
    config: IndexConfig, tokenizer: Tokenizer, location: str, columns: Schema, found: list[Found]
) -> Manifest:
    options = Options(config.text_field, config.member)
    return Manifest(
        name=Path(config.directory).name,
        spec={
            "format": FORMAT,
            PLAIN: {
                "options": asdict(options),
                "columns": list(config.columns),
                "validation_fraction": config.validation_fraction,
            },
            TARS: location,
        },
        tokenizer_kind=tokenizer.kind,
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        dtype=tokenizer.dtype.name,
        columns=dict(sorted(columns.items())),
        splits={
            name: Split(tuple(one.shards[name] for one in found if name in one.shards))
            for name in ("train", "validation")
        },
        baselines=None,
        skipped=dict(sorted(_skipped(found).items())),
        quarantined={},
        cleaning=[],
        provenance={"python": platform.python_version(), "numpy": np.__version__},
    )


def _publish(partial: Path, directory: Path) -> None:
    """Makes the finished directory visible in one step that survives a power cut."""
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.rename(partial, directory)
