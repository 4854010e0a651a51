"""The language of a document, by py3langid (Barbaresi; after langid.py, Lui and Baldwin 2012), whose model lies in its package.

Codes are ISO 639, as the package gives them (`zxx`: no language, such as code and numbers). The score is its probability, whose
scale is made independent of the length of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from data.clean.base import Dropped, Outcome, Seams, Step, with_columns
from data.config import DataError
from data.document import Document

UNKNOWN = "und"
"""ISO 639 for what cannot be told: a text without a letter."""

_PIECES = 3


@dataclass(frozen=True)
class LanguageConfig:
    """Writes columns language and language_score, and keeps the languages that are asked for."""

    name: ClassVar[str] = "language"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ("language", "language_score")

    keep: tuple[str, ...] = ()
    """ISO 639 codes of the languages to keep, such as [en, de]; `und` where it cannot be told; empty = all."""

    min_score: float = 0.0
    """Drop documents whose language has a lower probability, between 0 and 1. FineWeb takes 0.65 (of another model)."""

    characters: int = 3000
    """Look at this many characters: a third each from beginning, middle and end; 0 = all of the text, at about 6 MB/s."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise DataError(f"min_score = {self.min_score}: it must be between 0 and 1")
        if self.characters < 0:
            raise DataError(f"characters = {self.characters}: it must be at least 0")

    def make(self, seams: Seams) -> Step:
        return _Language(self)


class _Language:
    def __init__(self, config: LanguageConfig) -> None:
        self.config, self.identifier = config, _identifier()
        known = {*self.identifier.labels, UNKNOWN}
        if unknown := [code for code in config.keep if code not in known]:
            raise DataError(
                f"corpus.clean: step language, keep = {list(config.keep)}: {unknown[0]!r} is none of the "
                f"{len(known)} languages it can tell: {', '.join(sorted(known))}"
            )

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Outcome:
        language, score = self.tell(document.text)
        tagged = with_columns(document, {"language": language, "language_score": score})
        if self.config.keep and language not in self.config.keep:
            return Dropped(tagged, "other language", language)
        if score < self.config.min_score:
            return Dropped(tagged, "language unsure", f"{language} {score}")
        return tagged

    def tell(self, text: str) -> tuple[str, float]:
        """(code, probability to four digits)."""
        text = excerpt(text, self.config.characters)
        if not any(letter.isalpha() for letter in text):
            return UNKNOWN, 0.0
        language, score = self.identifier.classify(text)
        return language, round(score, 4)


@cache
def _identifier() -> Any:
    """The model, once a process: it is large enough to be felt, and for this step alone."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def excerpt(text: str, characters: int) -> str:
    """Equal pieces from beginning, middle and end, together `characters` long; the text itself where it is shorter or 0."""
    if not characters or len(text) <= characters:
        return text
    size = max(1, characters // _PIECES)
    starts = [place * (len(text) - size) // (_PIECES - 1) for place in range(_PIECES)]
    return "\n".join(text[start : start + size] for start in starts)
