"""What a person may say about text, tokenizer and stream: frozen dataclasses that refuse impossible values.

Each field is documented by the string under it; `triaxis train --help` shows those strings by reading this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EOD_TEXT = "<|endoftext|>"
"""How the end-of-document token is written in tokenizer files and in decoded text."""

BYTE_VOCABULARY = 257
"""Size of the byte vocabulary: 256 byte values and the end-of-document token. No vocabulary here is smaller."""


class DataError(ValueError):
    """A mistake that a person can repair: one message with the option, its value, the limit and the cure."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer turns text into tokens."""

    kind: str
    """`bpe`: byte-level byte-pair encoding, trained on the training split of the corpus; `byte`: one token a UTF-8
    byte; `file`: an existing tokenizer.json. All end each document with one end-of-document token."""

    vocab_size: int = 0
    """Number of token ids, the end-of-document token included. `bpe` needs at least 257; `byte` has always 257 and
    `file` what the file says, so there 0 means "as it is" and any other number is checked against it."""

    path: str = ""
    """The tokenizer.json to use; for kind `file` only."""

    def __post_init__(self) -> None:
        if self.kind not in ("byte", "bpe", "file"):
            raise DataError(f"tokenizer.kind = {self.kind!r}: it must be one of byte, bpe, file")
        if self.kind == "file" and not self.path:
            raise DataError("tokenizer.path is empty: kind `file` needs the path of a tokenizer.json")
        if self.kind != "file" and self.path:
            raise DataError(
                f"tokenizer.path = {self.path!r} has no effect with tokenizer.kind = {self.kind}: remove it, "
                "or set tokenizer.kind=file"
            )
        if self.kind == "bpe" and self.vocab_size < BYTE_VOCABULARY:
            raise DataError(
                f"tokenizer.vocab_size = {self.vocab_size}: bpe needs at least {BYTE_VOCABULARY} (256 bytes and the "
                "end-of-document token); raise it, or set tokenizer.kind=byte"
            )
        if self.kind == "byte" and self.vocab_size not in (0, BYTE_VOCABULARY):
            raise DataError(
                f"tokenizer.vocab_size = {self.vocab_size}: the byte tokenizer has always {BYTE_VOCABULARY}; "
                "set it to 0, or set tokenizer.kind=bpe"
            )
        _at_least("tokenizer.vocab_size", self.vocab_size, 0)


@dataclass(frozen=True)
class CorpusConfig:
    """Where text comes from and how it is cut into shards."""

    name: str
    """What the corpus is called in reports; also the last part of the default directory."""

    sources: tuple[str, ...]
    """Where the text is: paths or globs of text files, directories (searched recursively), .jsonl (also .gz, .zst),
    .parquet, webdataset .tar with .txt or .json members; or `stdlib`, the sources and docstrings of the Python
    standard library that runs this (about 30 MB on any machine)."""

    directory: str
    """Directory that will hold the finished corpus: shards, tokenizer and manifest.json. Must hold nothing else."""

    text_field: str = "text"
    """Key (JSON) or column (Parquet) that holds the text of a document."""

    validation_fraction: float = 0.02
    """Share of the documents held out for validation, above 0 and at most 0.5. A hash of a document's text decides, so
    documents added later never move others between the splits; at least one document is always held out."""

    max_document_bytes: int = 0
    """Longer documents are cut at line ends into documents of at most this many bytes of UTF-8, each of which may fall
    into either split; 0 = never cut. Needed where a corpus is one large text file."""

    shard_tokens: int = 1 << 26
    """A shard (one tar file) is closed when it holds at least this many tokens; 64 Mi tokens are 128 MiB at a
    vocabulary of up to 65,536."""

    block_tokens: int = 1 << 16
    """A block (one webdataset sample, the unit of shuffling) is closed when it holds at least this many tokens. The
    stream keeps about 40 bytes a block in memory."""

    workers: int = 0
    """Threads that encode text; 0 = all cores. Has no influence on the result."""

    def __post_init__(self) -> None:
        if not self.name:
            raise DataError("corpus.name is empty: give the corpus a name")
        if not self.directory:
            raise DataError("corpus.directory is empty: name the directory that will hold the corpus")
        if isinstance(self.sources, str) or not all(isinstance(source, str) and source for source in self.sources):
            raise DataError(f"corpus.sources = {self.sources!r}: it must be a list of paths, globs or `stdlib`")
        if not self.sources:
            raise DataError("corpus.sources is empty: name at least one file, directory, glob or `stdlib`")
        if not self.text_field:
            raise DataError("corpus.text_field is empty: name the key or column that holds the text")
        if not 0.0 < self.validation_fraction <= 0.5:
            raise DataError(
                f"corpus.validation_fraction = {self.validation_fraction}: it must be above 0 and at most 0.5, "
                "for example 0.02"
            )
        if self.max_document_bytes and self.max_document_bytes < 256:
            raise DataError(
                f"corpus.max_document_bytes = {self.max_document_bytes}: it must be 0 (never cut) or at least 256"
            )
        _at_least("corpus.block_tokens", self.block_tokens, 1)
        _at_least("corpus.workers", self.workers, 0)
        if self.shard_tokens < self.block_tokens:
            raise DataError(
                f"corpus.shard_tokens = {self.shard_tokens}: a shard must hold at least one block; raise it to "
                f"corpus.block_tokens = {self.block_tokens} or more"
            )


@dataclass(frozen=True)
class DataConfig:
    """What a run reads."""

    path: str
    """Directory of a built corpus, the one with manifest.json."""

    span_tokens: int = 2048
    """Training text is shuffled in spans of this many consecutive tokens, so that a batch mixes many documents. Best is
    the longest sequence length of the run: a multiple of the sequence length keeps every sequence within one span, and
    small batches want short spans. 0 = documents stay whole and follow one another."""

    prefetch: int = 4
    """Batches prepared ahead of the training step by a background thread; 0 = prepared when asked for."""

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError("data.path is empty: name the directory of a corpus (`triaxis data build` makes one)")
        _at_least("data.span_tokens", self.span_tokens, 0)
        _at_least("data.prefetch", self.prefetch, 0)


def _at_least(option: str, value: Any, limit: int) -> None:
    if value < limit:
        raise DataError(f"{option} = {value}: it must be at least {limit}")
