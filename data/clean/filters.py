"""Documents by an expression over their columns, and by a quantile of one column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from data.clean.base import Decision, Dropped, GlobalStep, Outcome, Seams, Signatures, Step
from data.config import DataError
from data.document import Document
from data.where import column, compile_where


@dataclass(frozen=True)
class FilterConfig:
    """Keeps the documents for which an expression over columns is true."""

    name: ClassVar[str] = "filter"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    where: str
    """What to keep, as an expression over columns of the user or of steps before: `language == "en" and 50 <= word_count`.
    Comparisons, `in`, `is None`, and, or, not, arithmetic; a missing value makes a comparison false (`data.where`)."""

    def __post_init__(self) -> None:
        compile_where(self.where)

    def make(self, seams: Seams) -> Step:
        return _Filter(self)


class _Filter:
    def __init__(self, config: FilterConfig) -> None:
        self.where = compile_where(config.where, "corpus.clean: where")
        self.reason = f"not {config.where}"

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        """A column that some documents have and others lack is missing there; one that none has is a mistake."""
        there = {name for document in documents for name in document.columns}
        names = there if not there.issuperset(self.where.names) else set(self.where.names)
        columns = {name: column([document.columns.get(name) for document in documents]) for name in names}
        keep = self.where.mask(columns).tolist() if documents else []
        return [
            document if good else Dropped(document, self.reason) for document, good in zip(documents, keep, strict=True)
        ]


@dataclass(frozen=True)
class QuantileConfig:
    """Keeps the documents between two quantiles of a column over the whole corpus, such as the middle of `perplexity`."""

    name: ClassVar[str] = "quantile"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    column: str
    """A column of numbers, of the user or of a step before."""

    low: float = 0.0
    """Drop this share of the documents at the lower end."""

    high: float = 1.0
    """Keep up to this share: 0.9 drops the upper tenth. Documents at a limit stay."""

    missing: str = "drop"
    """`keep` or `drop` documents without a number there, which do not count for the shares."""

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise DataError(f"low = {self.low}: it must be at least 0 and below high = {self.high}, which is at most 1")
        if self.missing not in ("keep", "drop"):
            raise DataError(f"missing = {self.missing!r}: it must be one of keep, drop")

    def make(self, seams: Seams) -> GlobalStep:
        return _Quantile(self)


class _Quantile:
    def __init__(self, config: QuantileConfig) -> None:
        self.config = config
        self.reason = f"{config.column} outside of quantiles {config.low:g} to {config.high:g}"

    def signature(self, documents: Sequence[Document]) -> np.ndarray:
        """float64 [n, 1]: the column, NaN where it is missing."""
        values = column([document.columns.get(self.config.column) for document in documents])
        if values.dtype == object:
            if any(value is not None for value in values):
                raise DataError(
                    f"corpus.clean: step quantile, column = {self.config.column!r}: it does not hold numbers"
                )
            values = np.full(len(values), np.nan)
        return values.astype(np.float64).reshape(-1, 1)

    def decide(self, signatures: Signatures) -> Decision:
        """Limits are values of documents: the order statistics below and above the quantiles."""
        values = signatures.column(0)
        there = np.isfinite(values)
        if len(values) and not there.any():
            raise DataError(f"corpus.clean: step quantile, column = {self.config.column!r}: no document has it")
        keep = np.full(len(values), self.config.missing == "keep") & ~there
        if not there.any():
            return Decision(keep)
        low = np.quantile(values[there], self.config.low, method="higher")
        high = np.quantile(values[there], self.config.high, method="lower")
        keep |= there & (values >= low) & (values <= high)
        return Decision(keep, note=f"kept {self.config.column} from {low:.6g} to {high:.6g}")
