"""What a person may say about text, tokenizer and stream: frozen dataclasses that refuse impossible values.

Each field is documented by the string under it; `triaxis train --help` shows those strings by reading this file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EOD_TEXT = "<|endoftext|>"
"""How the end-of-document token is written in tokenizer files and in decoded text."""

BYTE_VOCABULARY = 257
"""Size of the byte vocabulary: 256 byte values and the end-of-document token. No vocabulary here is smaller."""


class DataError(ValueError):
    """A mistake that a person can repair: one message with the option, its value, the limit and the cure."""


def _at_least(option: str, value: Any, limit: int) -> None:
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
        _at_least("tokenizer.vocab_size", self.vocab_size, 0)
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
        _at_least("corpus.block_tokens", self.block_tokens, 1)
        _at_least("corpus.workers", self.workers, 0)
        _at_least("corpus.part_bytes", self.part_bytes, 0)
        _at_least("corpus.max_bad_records", self.max_bad_records, 0)
        if self.shard_tokens < self.block_tokens:
            raise DataError(
                f"corpus.shard_tokens = {self.shard_tokens}: a shard must hold at least one block; raise it to "
                f"corpus.block_tokens = {self.block_tokens} or more"
            )


@dataclass(frozen=True)
class SourceConfig:
    """One part of a mixture."""

    path: str
    """Directory of a built corpus."""

    name: str = ""
    """What logs and pictures call it; empty: the corpus's name."""

    weight: float = 0.0
    """Share of the tokens, relative to the other sources; 0 for all of them: shares follow their sizes (see
    data.temperature)."""

    weights: tuple[tuple[float, ...], ...] = ()
    """Instead of `weight`, one that moves: [[tokens of the phase, weight], ...], linear between and constant after."""

    tokens: int = 0
    """Budget: the source gives this many tokens to the phase and no more; its weight is its budget."""

    epochs: float = 0.0
    """The run reads the source at most this many times; 0: as often as it takes."""

    where: str = ""
    """Only documents whose metadata passes, e.g. `language == "en" and words > 50`; columns: `triaxis data stats`."""

    ordering: str = ""
    """Documents in the order of this index (`triaxis data order`) instead of as stored."""

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError("data.sources: a source has no path; name the directory of a built corpus")
        for option in ("weight", "tokens", "epochs"):
            _at_least(f"data.sources: {option} of {self.path}", getattr(self, option), 0)
        given = [option for option in ("weight", "weights", "tokens") if getattr(self, option)]
        if len(given) > 1:
            raise DataError(f"data.sources: {self.path} has {' and '.join(given)}; keep one of them")
        knots = [knot[0] for knot in self.weights if len(knot) == 2 and knot[0] >= 0 and knot[1] >= 0]
        if len(knots) != len(self.weights) or sorted(set(knots)) != knots or (knots and knots[0] != 0):
            raise DataError(
                f"data.sources: weights = {[list(knot) for knot in self.weights]} of {self.path}: it must be a list of "
                "[tokens, weight] that begins at 0 tokens and ascends, e.g. [[0, 0.8], [1000000, 0.2]]"
            )


CURRICULA = ("natural", "uniform", "grow_linear", "grow_p2", "grow_p100", "shrink_p2", "shrink_p100")
"""Odds of bucket i of n (from the shortest): natural by tokens; uniform 1; grow_linear n - i; grow_p2 2^(n-1-i); grow_p100
100^(n-1-i); shrink the other way round (table 3 of arXiv 2405.13226)."""


@dataclass(frozen=True)
class BucketsConfig:
    """Batches of several sequence lengths, each row from one document, batch x length constant (arXiv 2405.13226)."""

    lengths: tuple[int, ...] = ()
    """Sequence lengths, each twice the one before; none: train.sequence_length for every batch."""

    curriculum: str = "natural"
    """Which length when: natural, uniform, grow_linear, grow_p2, grow_p100, shrink_p2 or shrink_p100. All but natural draw by
    odds until a length has given its share of the cycle's tokens."""

    cycles: int = 1
    """How often the curriculum is gone through in a phase."""

    def __post_init__(self) -> None:
        if self.curriculum not in CURRICULA:
            raise DataError(f"data.buckets.curriculum = {self.curriculum}: it must be one of {', '.join(CURRICULA)}")
        _at_least("data.buckets.cycles", self.cycles, 1)
        if not self.lengths:
            for option in ("curriculum", "cycles"):
                if getattr(self, option) != getattr(type(self), option):
                    raise DataError(
                        f"data.buckets.{option} = {getattr(self, option)} has no effect without data.buckets.lengths; set both"
                    )
        if any(b != 2 * a for a, b in zip(self.lengths, self.lengths[1:], strict=False)) or min((*self.lengths, 1)) < 1:
            raise DataError(
                f"data.buckets.lengths = {list(self.lengths)}: each must be twice the one before, e.g. [64, 128, 256]"
            )
        if self.curriculum == "natural" and self.cycles > 1:
            raise DataError(f"data.buckets.cycles = {self.cycles} has no effect with curriculum natural; set it to 1")


@dataclass(frozen=True)
class CacheConfig:
    """How shards that lie elsewhere are fetched, and how many are kept on this machine. Without effect on local ones."""

    directory: str = ""
    """Where fetched shards are kept, on a local disk; empty = `triaxis` in $TRIAXIS_CACHE or else in ~/.cache. All processes
    of a machine share it, and so may all runs."""

    gigabytes: float = 64.0
    """Most that fetched shards may take there, in units of 10^9 bytes; the ones not used for longest are removed, never one
    in use. Indexes, metadata and tokenizers are small, are kept always, and do not count."""

    timeout_seconds: float = 30.0
    """A server that does not connect or sends nothing for so long, or less than 1 KiB a second over so long, has failed."""

    attempts: int = 6
    """How often a file is asked for before the run stops and names it."""

    backoff_seconds: float = 1.0
    """Pause before the second attempt; doubled before each further one up to 64 times this, and varied by half so that
    processes do not ask in step."""

    parallel_downloads: int = 4
    """Shards fetched ahead at the same time by each process."""

    def __post_init__(self) -> None:
        if self.gigabytes <= 0:
            raise DataError(
                f"data.cache.gigabytes={self.gigabytes:g}: must be above 0; give it room for some shards, as 64"
            )
        if self.timeout_seconds <= 0:
            raise DataError(f"data.cache.timeout_seconds={self.timeout_seconds:g}: must be above 0, for example 30")
        if self.attempts < 1:
            raise DataError(f"data.cache.attempts={self.attempts}: must be at least 1")
        if self.backoff_seconds < 0:
            raise DataError(f"data.cache.backoff_seconds={self.backoff_seconds:g}: must not be negative")
        if self.parallel_downloads < 1:
            raise DataError(f"data.cache.parallel_downloads={self.parallel_downloads}: must be at least 1")

    @property
    def root(self) -> Path:
        """The directory, made absolute."""
        place = self.directory or os.path.join(os.environ.get("TRIAXIS_CACHE") or "~/.cache/triaxis", "remote")
        return Path(place).expanduser().absolute()

    @property
    def limit(self) -> int:
        """Bytes that shards may take."""
        return int(self.gigabytes * 1e9)

    @property
    def longest_pause(self) -> float:
        """Seconds that a process may rest between two attempts."""
        return 96 * self.backoff_seconds

    @property
    def patience(self) -> float:
        """Seconds without a sign of life after which another process counts as hung."""
        return 2 * self.timeout_seconds + self.longest_pause


@dataclass(frozen=True)
class DataConfig:
    """What a run reads, and in which order."""

    path: str = ""
    """Directory of a built corpus, the one with manifest.json; its validation split is what losses are measured on."""

    sources: tuple[SourceConfig, ...] = ()
    """A mixture: [{path: ..., weight: ...}, ...]; none: data.path alone."""

    temperature: float = 1.0
    """For sources without weights: a source of n tokens weighs n^(1/temperature)."""

    when_spent: str = "refuse"
    """What happens when a source reaches its `epochs` or `tokens` within a phase: refuse (before anything starts) or
    renormalise (the others share its weight)."""

    long_tokens: int = 0
    """Documents of at least this many tokens count as long; 0: no distinction. See long_share."""

    long_share: float = 0.0
    """Share of each source's tokens that comes from long documents, whatever they are in the corpus: per-source
    up-sampling of long documents keeps the mixture of sources as it is (arXiv 2402.10171)."""

    where: str = ""
    """Only documents whose metadata passes, e.g. `language == "en" and words > 50`; for data.path alone."""

    ordering: str = ""
    """Documents in the order of this index (`triaxis data order`); for data.path alone."""

    packing: str = "cut"
    """cut: documents one after another, cut at the sequence length; best_fit: no document is cut that fits in a sequence,
    the rest where they fit best (arXiv 2404.10830); document: one document a sequence."""

    span_tokens: int = 0
    """Text is cut and shuffled in units of this many tokens. 0: the longest sequence of the run's phases; a multiple of
    every phase's sequence length, so that phases go on in the text where others stopped."""

    shuffle: str = "global"
    """global: a keyed permutation of all units; window: so many stretches of the corpus at a time (data.window), for shards
    that come over a network; none: as stored, for orderings that mean something."""

    window: int = 16
    """Stretches (shards, where they are large) that are open at once with shuffle=window."""

    buckets: BucketsConfig = BucketsConfig()
    """Batches of several sequence lengths."""

    skip: tuple[tuple[int, ...], ...] = ()
    """Ranges of the line of tokens to pass over, [[begin, end], ...], as `triaxis data replay` prints them: after a spike of
    the loss. Part of a run's state: what was read before cannot be skipped any more."""

    cache: CacheConfig = CacheConfig()
    """Shards that lie elsewhere (a corpus at a URL, an index over tars at one) and are kept here for a while."""

    prefetch: int = 4
    """Batches prepared ahead of the training step by a background thread; 0 = prepared when asked for."""

    def __post_init__(self) -> None:
        if not self.path and not self.sources:
            raise DataError("data.path is empty: name the directory of a corpus (`triaxis data build` makes one)")
        for option, choices in (
            ("packing", ("cut", "best_fit", "document")),
            ("shuffle", ("global", "window", "none")),
            ("when_spent", ("refuse", "renormalise")),
        ):
            if getattr(self, option) not in choices:
                raise DataError(f"data.{option} = {getattr(self, option)}: it must be one of {', '.join(choices)}")
        for option in ("span_tokens", "prefetch", "long_tokens"):
            _at_least(f"data.{option}", getattr(self, option), 0)
        _at_least("data.window", self.window, 1)
        self._refuse_without_effect()
        if not self.temperature > 0:
            raise DataError(
                f"data.temperature = {self.temperature}: it must be above 0; 1 is by size, more is more even"
            )
        if not 0 <= self.long_share < 1:
            raise DataError(f"data.long_share = {self.long_share}: it must be at least 0 and below 1")
        weighed = [bool(source.weight or source.weights or source.tokens) for source in self.sources]
        if any(weighed) and not all(weighed):
            poor = self.sources[weighed.index(False)].path
            raise DataError(f"data.sources: {poor} has no weight and others have; give every source a weight, or none")
        if len({bool(source.tokens) for source in self.sources}) > 1:
            raise DataError("data.sources: some have `tokens` and some a weight; use one kind for all")
        names = [(source.path, source.name, source.where, source.ordering) for source in self.sources]
        if len(set(names)) < len(names):
            raise DataError("data.sources: two are the same (path, name, where, ordering); add their weights up")
        ends = [0]
        for place in self.skip:
            if len(place) != 2 or not ends[-1] <= place[0] < place[1]:
                raise DataError(
                    f"data.skip = {[list(place) for place in self.skip]}: it must be ascending ranges [begin, end] that do not "
                    "overlap"
                )
            ends.append(place[1])

    def _refuse_without_effect(self) -> None:
        def refuse(option: str, reason: str) -> None:
            if getattr(self, option) != getattr(DataConfig, option):
                raise DataError(f"data.{option} = {getattr(self, option)} has no effect {reason}; leave it out")

        if self.sources:
            for option in ("where", "ordering"):
                refuse(option, "with data.sources: say it of a source")
        else:
            refuse("when_spent", "without data.sources")
        if not self.sources or any(source.weight or source.weights or source.tokens for source in self.sources):
            refuse("temperature", "unless data.sources are given without weights")
        if self.shuffle != "window":
            refuse("window", "unless data.shuffle=window")
        if bool(self.long_tokens) != bool(self.long_share):
            raise DataError(
                f"data.long_tokens = {self.long_tokens} and data.long_share = {self.long_share}: one has no effect without the "
                "other; set both"
            )
        if self.buckets.lengths:
            refuse("packing", "with data.buckets: each row is a piece of one document")
            refuse("span_tokens", "with data.buckets")

    @property
    def parts(self) -> tuple[SourceConfig, ...]:
        """The sources, data.path alone being one of its own."""
        return self.sources or (SourceConfig(self.path, where=self.where, ordering=self.ordering),)

    @property
    def home(self) -> str:
        """The corpus whose tokenizer, vocabulary and baselines the run goes by."""
        return self.path or self.sources[0].path
