"""Documents by what a language model of one's own thinks of them (after CCNet, Wenzek et al. 2020, arXiv 1911.00359)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.clean.base import Dropped, Outcome, Scorer, Seams, Step, with_columns
from data.config import DataError
from data.document import Document

_MAX_NATS = 700.0  # a token: exp of more is no float64


@dataclass(frozen=True)
class PerplexityConfig:
    """Writes columns perplexity (a token of the run's tokenizer) and bits_per_byte, and drops beyond limits.

    A cut by shares of the corpus instead of limits is the step `quantile` after this one.
    """

    name: ClassVar[str] = "perplexity"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("perplexity", "bits_per_byte")

    run: str
    """Directory of a run (or of one checkpoint) whose model scores; its newest checkpoint is read, on CPU."""

    tokens: int = 512
    """Read this many tokens of each document, from its beginning; 0 = all."""

    min_perplexity: float = 0.0
    """Drop what is more predictable: boilerplate, repetition."""

    max_perplexity: float = 0.0
    """Drop what is less predictable; 0 = no limit."""

    min_bits_per_byte: float = 0.0
    """The same by bits a byte, which compare between tokenizers."""

    max_bits_per_byte: float = 0.0
    """The same; 0 = no limit."""

    def __post_init__(self) -> None:
        if not self.run:
            raise DataError("run is empty: name the directory of a run")
        for option in ("tokens", "min_perplexity", "max_perplexity", "min_bits_per_byte", "max_bits_per_byte"):
            if getattr(self, option) < 0:
                raise DataError(f"{option} = {getattr(self, option)}: it must be at least 0")
        for unit in ("perplexity", "bits_per_byte"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if high and low > high:
                raise DataError(f"min_{unit} = {low}: it must be at most max_{unit} = {high}")

    def make(self, seams: Seams) -> Step:
        if seams.scorer is None:
            raise DataError(
                "corpus.clean: step perplexity needs a language model, and nothing here can load one; clean with `triaxis "
                "data build`, or give Seams(scorer=…)"
            )
        return _Perplexity(self, seams)


class _Perplexity:
    def __init__(self, config: PerplexityConfig, seams: Seams) -> None:
        if not Path(config.run).expanduser().exists():
            raise DataError(f"corpus.clean: step perplexity, run = {config.run!r}: no such directory; correct the path")
        self.config, self.seams = config, seams
        self.limits = [
            (column, low, high or np.inf)
            for column, low, high in (
                ("perplexity", config.min_perplexity, config.max_perplexity),
                ("bits_per_byte", config.min_bits_per_byte, config.max_bits_per_byte),
            )
        ]

    @cached_property
    def _scorer(self) -> Scorer:
        """Loaded where it is first used: a process that only decides needs no model."""
        assert self.seams.scorer
        return self.seams.scorer(self.config.run, self.config.tokens)

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        scores = self._scorer([document.text for document in documents])
        perplexity = np.exp(np.minimum(scores.nats / np.maximum(scores.tokens, 1), _MAX_NATS))
        bits = scores.nats / np.log(2) / np.maximum(scores.bytes, 1)
        return [
            self._one(with_columns(document, {"perplexity": one, "bits_per_byte": other}))
            for document, one, other in zip(documents, perplexity.tolist(), bits.tolist(), strict=True)
        ]

    def _one(self, document: Document) -> Outcome:
        for column, low, high in self.limits:
            value = document.columns[column]
            assert isinstance(value, float)
            if value < low:
                return Dropped(document, f"{column} < {low:g}", f"{value:.4g}")
            if value > high:
                return Dropped(document, f"{column} > {high:g}", f"{value:.4g}")
        return document
