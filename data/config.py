"""What a person may say about text and tokenizer: frozen dataclasses that refuse impossible values. `data.stream_config` has
what may be said about a stream.

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


class Unreachable(DataError):
    """A server that failed as often as was allowed, without saying that it always will: later it may answer."""


def at_least(option: str, value: Any, limit: int) -> None:
    """Refuses a value below its limit."""
    if value < limit:
        raise DataError(f"{option} = {value}: it must be at least {limit}")


@dataclass(frozen=True)
class TokenizerConfig:
    """Which tokenizer turns text into tokens."""

    kind: str
    """`bpe`: byte-level byte-pair encoding, trained on the training split of the corpus; `unigram`: a SentencePiece unigram
    language model with bytes for what it does not know, trained likewise; `byte`: one token a UTF-8 byte; `file`: an
    existing tokenizer.json, SentencePiece .model or .tiktoken file. All end each document with one end-of-document
    token."""

    vocab_size: int = 0
    """Number of token ids, the end-of-document token included, special_tokens not. `bpe` and `unigram` need at least 257;
    `byte` has always 257 and `file` what the file says, so there 0 means "as it is" and any other number is checked."""

    path: str = ""
    """The file to use; for kind `file` only."""

    pattern: str = ""
    """How text is split into words before they are encoded: `gpt2` (what empty means for `bpe`), `cl100k`
    (GPT-4, Llama 3) or `qwen2` (single digits). Also for a .tiktoken file, which does not say it; other files do."""

    normalizer: str = "none"
    """Unicode normal form that text is brought to before: `none` (nothing is lost), `nfkc`, for `bpe` also `nfc`. Trained
    kinds only."""

    special_tokens: tuple[str, ...] = ()
    """Names of tokens that objectives need (mask, sentinels, fill-in-the-middle); each gets an id of its own behind the
    vocabulary unless the file has it. Text never produces them."""

    @property
    def trained(self) -> bool:
        """Whether it is trained on the corpus."""
        return self.kind in ("bpe", "unigram")

    def __post_init__(self) -> None:
        if self.kind not in ("byte", "bpe", "unigram", "file"):
            raise DataError(f"tokenizer.kind = {self.kind!r}: it must be one of byte, bpe, unigram, file")
        if self.kind == "file" and not self.path:
            raise DataError(
                "tokenizer.path is empty: kind `file` needs a tokenizer.json, SentencePiece .model or .tiktoken file"
            )
        if self.kind != "file" and self.path:
            raise DataError(
                f"tokenizer.path = {self.path!r} has no effect with tokenizer.kind = {self.kind}: remove it, "
                "or set tokenizer.kind=file"
            )
        if self.trained and self.vocab_size < BYTE_VOCABULARY:
            raise DataError(
                f"tokenizer.vocab_size = {self.vocab_size}: {self.kind} needs at least {BYTE_VOCABULARY} (256 bytes and "
                "the end-of-document token); raise it, or set tokenizer.kind=byte"
            )
        if self.kind == "byte" and self.vocab_size not in (0, BYTE_VOCABULARY):
            raise DataError(
                f"tokenizer.vocab_size = {self.vocab_size}: the byte tokenizer has always {BYTE_VOCABULARY}; "
                "set it to 0, or set tokenizer.kind=bpe"
            )
        at_least("tokenizer.vocab_size", self.vocab_size, 0)
        self._check_text()

    def _check_text(self) -> None:
        """What happens to text before it is encoded, and the special tokens."""
        patterns = ("gpt2", "cl100k", "qwen2")
        if self.pattern and self.pattern not in patterns:
            raise DataError(f"tokenizer.pattern = {self.pattern!r}: it must be one of {', '.join(patterns)}, or empty")
        if self.pattern and self.kind in ("byte", "unigram"):
            raise DataError(f"tokenizer.pattern = {self.pattern!r} has no effect on {self.kind}: leave it empty")
        if self.normalizer not in ("none", "nfc", "nfkc"):
            raise DataError(f"tokenizer.normalizer = {self.normalizer!r}: it must be one of none, nfc, nfkc")
        if self.normalizer == "nfc" and self.kind == "unigram":
            raise DataError("tokenizer.normalizer = 'nfc': SentencePiece has none and nfkc; take one of them, or bpe")
        if self.normalizer != "none" and not self.trained:
            raise DataError(
                f"tokenizer.normalizer = {self.normalizer!r} has no effect with tokenizer.kind = {self.kind}: set it to "
                "none (the cleaning step `unicode` changes text itself)"
            )
        twice = [name for name in self.special_tokens if self.special_tokens.count(name) > 1 or not name]
        if twice or EOD_TEXT in self.special_tokens:
            raise DataError(
                f"tokenizer.special_tokens = {list(self.special_tokens)}: names must be different, not empty and not "
                f"{EOD_TEXT!r}, which every vocabulary has"
            )


@dataclass(frozen=True)
class CorpusConfig:
    """Where text comes from and how it is cut into shards."""

    name: str
    """What the corpus is called in reports; also the last part of the default directory."""

    sources: tuple[str, ...]
    """Where the text is: paths or globs of text files, directories (searched recursively), .jsonl, .parquet, .warc and
    .wet archives of the web, webdataset .tar with .txt, .json or .jsonl members, folders saved by Hugging Face datasets
    (save_to_disk); plain or .gz, .zst, .bz2, .xz. Or `stdlib`, the sources and docstrings of the Python standard library
    that runs this (about 30 MB on any machine)."""

    directory: str
    """Directory that will hold the finished corpus: shards, tokenizer and manifest.json. Must hold nothing else."""

    text_field: str = "text"
    """Key (JSON) or column (Parquet, Arrow) that holds the text of a document."""

    columns: tuple[str, ...] = ("*",)
    """Which other fields of a record become columns of its document's metadata, by name (`outer.inner` for one within
    another); `*` = every number, text of up to 1,000 characters and truth value. [] = none."""

    clean: tuple[dict[str, Any], ...] = ()
    """Cleaning steps in the order they are taken, each with its options, such as [{step: unicode}, {step: signals}]. What
    each did is in cleaning.json beside the manifest."""

    max_bad_records: float = 0.01
    """How many records may be unusable (not JSON, not UTF-8, without text field, a file's damaged rest): a number from 1
    on, or a share of all below 1 (then always ten). They are kept with the reason in quarantine.jsonl.zst. 0 = none."""

    validation_fraction: float = 0.02
    """Share of the documents held out for validation, above 0 and at most 0.5. A hash of a document's text decides, so
    documents added later never move others between the splits; at least one document is always held out."""

    max_document_bytes: int = 0
    """Longer documents are cut at line ends into documents of at most this many bytes of UTF-8, each of which may fall
    into either split; 0 = never cut. Needed where a corpus is one large text file."""

    shard_tokens: int = 1 << 26
    """A shard (one tar file) is closed when it holds at least this many tokens; 64 Mi tokens are 128 MiB at a
    vocabulary of up to 65,536. Every part of a build begins shards of its own."""

    block_tokens: int = 1 << 16
    """A block (one webdataset sample, the unit of shuffling) is closed when it holds at least this many tokens. The
    stream keeps about 40 bytes a block in memory."""

    part_bytes: int = 0
    """The inputs are cut into parts of about this many bytes (as they are on disk), each read, cleaned and encoded by one
    process and kept when a build is interrupted. 0 = a 64th of the inputs, from 8 MiB to 256 MiB."""

    workers: int = 0
    """Processes that read, clean and encode; 0 = one a core. Has no influence on the result."""

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
        at_least("corpus.block_tokens", self.block_tokens, 1)
        at_least("corpus.workers", self.workers, 0)
        at_least("corpus.part_bytes", self.part_bytes, 0)
        at_least("corpus.max_bad_records", self.max_bad_records, 0)
        if self.shard_tokens < self.block_tokens:
            raise DataError(
                f"corpus.shard_tokens = {self.shard_tokens}: a shard must hold at least one block; raise it to "
                f"corpus.block_tokens = {self.block_tokens} or more"
            )
