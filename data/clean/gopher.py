"""Gopher's document rules (Rae et al. 2021, arXiv 2112.11446, appendix A.1), over the columns that `signals` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from data.clean.base import Dropped, Outcome, Seams, Step
from data.clean.signals import DUPLICATE_SIZES, TOP_SIZES
from data.config import DataError
from data.document import Document


@dataclass(frozen=True)
class GopherConfig:
    """Drops documents by Gopher's rules of quality and repetition; every default is the published limit."""

    name: ClassVar[str] = "gopher"
    writes: ClassVar[tuple[str, ...]] = ()

    min_words: int = 50
    """Fewest words (tokens between white space)."""

    max_words: int = 100_000
    """Most words."""

    min_word_length: float = 3.0
    """Smallest mean length of words, in characters."""

    max_word_length: float = 10.0
    """Largest mean length of words."""

    max_symbol_ratio: float = 0.1
    """Most hash signs, and most ellipses, a word."""

    max_bullet_lines: float = 0.9
    """Largest share of lines that begin with a bullet."""

    max_ellipsis_lines: float = 0.3
    """Largest share of lines that end with an ellipsis."""

    min_alphabetic: float = 0.8
    """Smallest share of words with a letter."""

    min_stop_words: int = 2
    """Fewest different ones of the, be, to, of, and, that, have, with. Set 0 for other languages than English."""

    max_duplicate_lines: float = 0.3
    """Largest share of lines that occurred before in the document."""

    max_duplicate_line_characters: float = 0.2
    """The same by characters."""

    max_duplicate_paragraphs: float = 0.3
    """Largest share of paragraphs that occurred before in the document."""

    max_duplicate_paragraph_characters: float = 0.2
    """The same by characters."""

    max_top_ngrams: tuple[float, ...] = (0.20, 0.18, 0.16)
    """Largest shares of characters in the most frequent run of 2, 3 and 4 words."""

    max_duplicate_ngrams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Largest shares of characters in repeated runs of 5, 6, 7, 8, 9 and 10 words."""

    def __post_init__(self) -> None:
        for option, sizes in (("max_top_ngrams", TOP_SIZES), ("max_duplicate_ngrams", DUPLICATE_SIZES)):
            if len(getattr(self, option)) != len(sizes):
                sizes_told = ", ".join(map(str, sizes))
                raise DataError(
                    f"{option} = {list(getattr(self, option))}: it must hold {len(sizes)} shares, for {sizes_told} words"
                )
        for item in fields(self):
            value = getattr(self, item.name)
            if any(entry < 0 for entry in (value if isinstance(value, tuple) else [value])):
                raise DataError(f"{item.name} = {value}: it must not be negative")

    @property
    def reads(self) -> tuple[str, ...]:
        """The signals that the rules are about."""
        return tuple(dict.fromkeys(column for column, _, _ in self.limits()))

    def limits(self) -> Iterator[tuple[str, str, Any]]:
        """(column, side, limit): a value on that side of the limit drops the document."""
        yield "token_count", "<", self.min_words
        yield "token_count", ">", self.max_words
        yield "mean_token_length", "<", self.min_word_length
        yield "mean_token_length", ">", self.max_word_length
        yield "hash_ratio", ">", self.max_symbol_ratio
        yield "ellipsis_ratio", ">", self.max_symbol_ratio
        yield "bullet_line_share", ">", self.max_bullet_lines
        yield "ellipsis_line_share", ">", self.max_ellipsis_lines
        yield "alphabetic_token_share", "<", self.min_alphabetic
        yield "stop_word_count", "<", self.min_stop_words
        yield "duplicate_line_share", ">", self.max_duplicate_lines
        yield "duplicate_line_characters", ">", self.max_duplicate_line_characters
        yield "duplicate_paragraph_share", ">", self.max_duplicate_paragraphs
        yield "duplicate_paragraph_characters", ">", self.max_duplicate_paragraph_characters
        for size, limit in zip(TOP_SIZES, self.max_top_ngrams, strict=True):
            yield f"top_{size}gram", ">", limit
        for size, limit in zip(DUPLICATE_SIZES, self.max_duplicate_ngrams, strict=True):
            yield f"duplicate_{size}grams", ">", limit

    def make(self, seams: Seams) -> Step:
        return _Limits(list(self.limits()))


class _Limits:
    """Drops by the first limit that is passed."""

    def __init__(self, limits: list[tuple[str, str, Any]]) -> None:
        self.limits = [(column, side == "<", limit, f"{column} {side} {limit}") for column, side, limit in limits]

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Outcome:
        for column, below, limit, reason in self.limits:
            value: Any = document.columns[column]
            if value < limit if below else value > limit:
                return Dropped(document, reason, f"{value:.4g}")
        return document
