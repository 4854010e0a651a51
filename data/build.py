"""Text to a finished corpus: shards, tokenizer and manifest, in one directory that appears all at once.

Two passes over the text. The first (`data.survey`) drops copies, decides the splits and draws the tokenizer's sample;
the second encodes in threads (the tokenizer releases the interpreter lock) and writes in the order of the sources, so
the bytes are the same at any number of threads. Everything is written to a hidden directory beside the final one and
renamed when it is whole: a build that was killed leaves nothing that could be taken for a corpus.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from data import baselines
from data.config import CorpusConfig, DataError, TokenizerConfig
from data.document import Document
from data.manifest import FORMAT, MANIFEST, Manifest, Split
from data.shards import Blocks, ShardWriter
from data.sources import SourceFile, inventory_hash, list_files
from data.survey import Progress, Survey, survey, unique_documents
from data.tokenizers import TOKENIZER_DIRECTORY, Tokenizer, make_tokenizer, read_tokenizer_file

_TASK_BYTES = 1 << 18


def build(corpus: CorpusConfig, tokenizer: TokenizerConfig, progress: Progress | None = None) -> Manifest:
    """Builds the corpus, or returns the one that is there when it was built from the same options and text.

    progress: called as progress(done, total, note) with bytes. DataError for every mistake that a person can repair;
    then, and after an interruption, the directory is as it was before.
    """
    directory = Path(corpus.directory).expanduser().absolute()
    try:
        with _only_builder(directory, progress):
            found = _existing(directory, corpus, tokenizer)
            return found or _build(directory, corpus, tokenizer, progress or (lambda done, total, note: None))
    except OSError as error:
        raise DataError(
            f"corpus.directory = {corpus.directory}: cannot build there ({error.strerror or error}); free space, allow "
            "writing, or choose another directory"
        ) from error


def _build(directory: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig, progress: Progress) -> Manifest:
    files = list_files(corpus.sources)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        found = survey(files, corpus, tokenizer.kind == "bpe", progress)
        progress(0, found.bytes, "training the tokenizer" if tokenizer.kind == "bpe" else "reading the tokenizer")
        made = make_tokenizer(tokenizer, found.sample)
        made.save(partial / TOKENIZER_DIRECTORY)
        splits = _write_splits(partial, files, corpus, made, found, progress)
        progress(found.bytes, found.bytes, "computing baselines")
        manifest = Manifest(
            name=corpus.name,
            spec=_spec(corpus, tokenizer, files),
            tokenizer_kind=made.kind,
            tokenizer_fingerprint=made.fingerprint,
            vocab_size=made.vocab_size,
            eod=made.eod,
            dtype=made.dtype.name,
            columns={},
            splits=splits,
            baselines=None,
            skipped=found.skipped,
            provenance={
                "python": platform.python_version(),
                "numpy": np.__version__,
                "tokenizers": tokenizers.__version__,
            },
        )
        train, validation = (Blocks(partial, splits[name], manifest.dtype) for name in ("train", "validation"))
        manifest = replace(manifest, baselines=baselines.compute(train, validation, made.vocab_size, made.eod))
        manifest.save(partial)
        _publish(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write_splits(
    directory: Path,
    files: list[SourceFile],
    corpus: CorpusConfig,
    tokenizer: Tokenizer,
    found: Survey,
    progress: Progress,
) -> dict[str, Split]:
    """The second pass: encodes every document and writes it to its split."""
    sizes = (tokenizer.dtype, corpus.block_tokens, corpus.shard_tokens)
    done = 0
    with ShardWriter(directory, "train", *sizes) as train, ShardWriter(directory, "validation", *sizes) as validation:
        documents = unique_documents(files, corpus, Counter())
        for document, split_hash, size, tokens in _encoded(documents, tokenizer, corpus.workers):
            meta = {"source": document.source, "path": document.path, "row": document.row, "bytes": size}
            (validation if split_hash < found.threshold else train).add(tokens, meta)
            done += size
            progress(done, found.bytes, "encoding")
        splits = {"train": train.finish(), "validation": validation.finish()}
    if sum(split.documents for split in splits.values()) != found.documents:
        raise DataError(f"corpus.sources = {list(corpus.sources)}: the text changed while it was read; build again")
    return splits


_Encoded = tuple[Document, int, int, np.ndarray]


def _encoded(documents: Iterator[tuple[Document, int]], tokenizer: Tokenizer, workers: int) -> Iterator[_Encoded]:
    """(document, split hash, UTF-8 bytes, tokens with eod) in the order of the documents, encoded in threads."""

    def encode(task: list[tuple[Document, int]]) -> list[_Encoded]:
        end = np.full(1, tokenizer.eod)
        return [
            (document, split_hash, len(document.text.encode()), np.concatenate([tokenizer.encode(document.text), end]))
            for document, split_hash in task
        ]

    threads = workers or len(os.sched_getaffinity(0))
    pending: deque[Future[list[_Encoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in _tasks(documents):
                pending.append(pool.submit(encode, task))
                if len(pending) >= 4 * threads:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _tasks(documents: Iterator[tuple[Document, int]]) -> Iterator[list[tuple[Document, int]]]:
    """Groups of documents of about _TASK_BYTES characters."""
    task: list[tuple[Document, int]] = []
    size = 0
    for document, split_hash in documents:
        task.append((document, split_hash))
        size += len(document.text)
        if size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _spec(corpus: CorpusConfig, tokenizer: TokenizerConfig, files: list[SourceFile] | None) -> dict[str, Any]:
    """Everything that decides the contents of a corpus; `corpus.sources (their files)` only when files are given."""
    spec: dict[str, Any] = {
        "format": FORMAT,
        "corpus.sources": list(corpus.sources),
        "corpus.text_field": corpus.text_field,
        "corpus.validation_fraction": corpus.validation_fraction,
        "corpus.max_document_bytes": corpus.max_document_bytes,
        "corpus.shard_tokens": corpus.shard_tokens,
        "corpus.block_tokens": corpus.block_tokens,
        "tokenizer.kind": tokenizer.kind,
        "tokenizer.vocab_size": tokenizer.vocab_size,
    }
    if tokenizer.kind == "file":
        spec["tokenizer.path (its contents)"] = Tokenizer("file", read_tokenizer_file(tokenizer.path)).fingerprint
    if files is not None:
        spec["corpus.sources (their files)"] = inventory_hash(files)
    return spec


def _existing(directory: Path, corpus: CorpusConfig, tokenizer: TokenizerConfig) -> Manifest | None:
    """The corpus in the directory if it is the one asked for, None if there is none, DataError if it is another."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).exists():
        raise DataError(
            f"corpus.directory = {corpus.directory}: it exists and is not a corpus (no {MANIFEST}); choose another "
            "directory, or empty this one"
        )
    manifest = Manifest.load(directory)
    try:
        files = list_files(corpus.sources)
    except DataError:
        files = None  # the text may be gone once the corpus is built; what cannot be compared is not
    wanted = _spec(corpus, tokenizer, files)
    different = [
        f"{option} was {manifest.spec.get(option)!r}, now {value!r}"
        for option, value in wanted.items()
        if manifest.spec.get(option) != value
    ]
    if different:
        raise DataError(
            f"corpus.directory = {corpus.directory}: it holds a corpus built otherwise ({'; '.join(different)}); "
            f"delete it (rm -r {directory}) or choose another corpus.directory"
        )
    for split in manifest.splits.values():
        Blocks(directory, split, manifest.dtype)  # names a shard that is missing or of the wrong size
    return manifest


def _publish(partial: Path, directory: Path) -> None:
    """Makes the finished directory visible in one step that survives a power cut."""
    for path in [*partial.rglob("*"), partial]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.rename(partial, directory)
    descriptor = os.open(directory.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


@contextmanager
def _only_builder(directory: Path, progress: Progress | None) -> Iterator[None]:
    """Holds the lock of the directory: a second builder waits, and then finds the corpus finished."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with (directory.parent / f".{directory.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                progress(0, 1, "waiting for another build of this corpus")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
