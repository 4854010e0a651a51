"""Documents by an expression over their columns, and by a quantile of one column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from data.clean.base import Dropped, Outcome, Seams, Step
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
