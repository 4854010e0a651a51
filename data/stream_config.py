"""What a person may say about what a run reads: frozen dataclasses that refuse impossible values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data.config import DataError, at_least


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
            at_least(f"data.sources: {option} of {self.path}", getattr(self, option), 0)
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
        at_least("data.buckets.cycles", self.cycles, 1)
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
            at_least(f"data.{option}", getattr(self, option), 0)
        at_least("data.window", self.window, 1)
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
