"""Rules for lines, and C4's page rules, which rest on them (Raffel et al. 2020, arXiv 1910.10683, section 2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

from data.clean.addresses import read_entries
from data.clean.base import Dropped, Outcome, Seams, Step, Trimmed, kept
from data.config import DataError
from data.document import Document

TERMINALS = (".", "!", "?", '"', "\u201d")
"""C4's terminal punctuation: full stop, exclamation mark, question mark, end quotation mark."""

POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
"""What C4 takes for boilerplate about cookies and terms."""

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")  # Wikipedia's marks
_SENTENCE = re.compile(r"[^.!?]+[.!?]+|[^.!?]+$")
_BOILERPLATE = re.compile("|".join(("javascript", *POLICIES)), re.IGNORECASE)
_WORD = re.compile(r"\w+")
_ELLIPSIS = ("...", "\u2026")


@dataclass(frozen=True)
class LinesConfig:
    """Drops lines out of documents by rules of one's own; a document without a line left is dropped."""

    name: ClassVar[str] = "lines"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    terminal: bool = False
    """Drop lines that do not end with a terminal punctuation mark (. ! ? or an end quotation mark), or end with an ellipsis."""

    min_words: int = 0
    """Drop lines of fewer words (between white space); empty lines, which part paragraphs, stay."""

    max_word_characters: int = 0
    """Drop lines that hold a word of more characters (an encoded file, a broken address); 0 = none."""

    boilerplate: bool = False
    """Drop lines with `javascript` or one of C4's phrases about cookies and terms of use."""

    phrases: tuple[str, ...] = ()
    """Drop lines that contain one of these, whatever the case."""

    repeats: int = 0
    """Keep this many of equal lines of a document, the first ones; 0 = all."""

    def __post_init__(self) -> None:
        for option in ("min_words", "max_word_characters", "repeats"):
            if getattr(self, option) < 0:
                raise DataError(f"{option} = {getattr(self, option)}: it must be at least 0")
        if not all(self.phrases):
            raise DataError(f"phrases = {list(self.phrases)}: an empty one is in every line; remove it")
        if not any(getattr(self, item.name) for item in fields(self)):
            raise DataError("terminal = False: no rule is set, so the step has no effect; set one, or remove the step")

    def make(self, seams: Seams) -> Step:
        return _Lines(self)


@dataclass(frozen=True)
class C4Config:
    """Drops lines and pages as C4 did; every default is the published rule."""

    name: ClassVar[str] = "c4"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[tuple[str, ...]] = ()

    terminal: bool = True
    """Drop lines that do not end with a terminal punctuation mark, or end with an ellipsis."""

    min_words: int = 5
    """Drop lines of fewer words."""

    max_word_characters: int = 1000
    """Drop lines that hold a word of more characters; 0 = none."""

    boilerplate: bool = True
    """Drop lines with `javascript` or a phrase about cookies and terms of use."""

    citations: bool = True
    """Remove citation marks such as [1] and [edit]."""

    curly_brackets: bool = True
    """Drop pages with a curly bracket, which are mostly code."""

    lorem_ipsum: bool = True
    """Drop pages with the placeholder text lorem ipsum."""

    min_sentences: int = 3
    """Drop pages that have fewer sentences once their lines are dropped. A sentence ends with . ! or ?"""

    banned_words: str = ""
    """A file of words or phrases, one a line; pages with one of them are dropped. C4 took a public list of dirty words."""

    def __post_init__(self) -> None:
        for option in ("min_words", "max_word_characters", "min_sentences"):
            if getattr(self, option) < 0:
                raise DataError(f"{option} = {getattr(self, option)}: it must be at least 0")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Files whose contents decide the result."""
        return (self.banned_words,) if self.banned_words else ()

    def make(self, seams: Seams) -> Step:
        return _C4(self)


class _Lines:
    def __init__(self, config: LinesConfig) -> None:
        self.config = config
        phrases = "|".join(map(re.escape, config.phrases))
        self.phrases = re.compile(phrases, re.IGNORECASE) if phrases else None

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self.one(document) for document in documents]

    def one(self, document: Document) -> Outcome:
        """The document with the lines that no rule is against."""
        seen: dict[str, int] = {}
        left: list[str] = []
        dropped: list[tuple[str, str]] = []
        for line in document.text.split("\n"):
            if reason := line.strip() and self._reason(line.strip(), seen):
                dropped.append((reason, line))
            else:
                left.append(line)
        if not dropped:
            return document
        text = "\n".join(left)
        return (
            Trimmed(replace(document, text=text), tuple(dropped)) if text.strip() else Dropped(document, "no line left")
        )

    def _reason(self, line: str, seen: dict[str, int]) -> str:
        """Why a line goes; empty where it stays."""
        rules = self.config
        if rules.terminal and (not line.endswith(TERMINALS) or line.endswith(_ELLIPSIS)):
            return "no terminal punctuation"
        words = line.split() if rules.min_words or rules.max_word_characters else []
        if len(words) < rules.min_words:
            return "few words"
        if rules.max_word_characters and len(max(words, key=len)) > rules.max_word_characters:
            return "long word"
        if rules.boilerplate and _BOILERPLATE.search(line):
            return "boilerplate"
        if self.phrases and self.phrases.search(line):
            return "phrase"
        if rules.repeats:
            seen[line] = seen.get(line, 0) + 1
            return "repeated" if seen[line] > rules.repeats else ""
        return ""


class _C4:
    def __init__(self, config: C4Config) -> None:
        self.config = config
        rules = (config.terminal, config.min_words, config.max_word_characters, config.boilerplate)
        self.lines = _Lines(LinesConfig(*rules)) if any(rules) else None
        entries = read_entries([config.banned_words], "step c4, banned_words") if config.banned_words else []
        phrases = [" ".join(_WORD.findall(entry.lower())) for entry in entries]
        self.words = frozenset(phrase for phrase in phrases if phrase and " " not in phrase)
        self.phrases = [f" {phrase} " for phrase in phrases if " " in phrase]

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        return [self._one(document) for document in documents]

    def _one(self, document: Document) -> Outcome:
        rules, text = self.config, document.text
        if rules.curly_brackets and ("{" in text or "}" in text):
            return Dropped(document, "curly bracket")
        if rules.lorem_ipsum and "lorem ipsum" in text.lower():
            return Dropped(document, "lorem ipsum")
        if banned := self._banned(text):
            return Dropped(document, "banned word", banned)
        bare = _CITATION.sub("", text) if rules.citations else text
        found = document if bare == text else replace(document, text=bare)
        outcome = self.lines.one(found) if self.lines else found
        if isinstance(outcome, Dropped):
            return Dropped(document, outcome.reason)
        if (sentences := sentence_count(kept(outcome).text)) < rules.min_sentences:
            return Dropped(document, "few sentences", str(sentences))
        return outcome

    def _banned(self, text: str) -> str:
        """The first banned word or phrase, in alphabetical order; nothing where there is none."""
        if not (self.words or self.phrases):
            return ""
        words = _WORD.findall(text.lower())
        found = self.words.intersection(words)
        if self.phrases:
            joined = f" {' '.join(words)} "
            found = found.union(phrase.strip() for phrase in self.phrases if phrase in joined)
        return min(found, default="")


def sentence_count(text: str) -> int:
    """Runs of text that end with . ! or ? or with the text, and hold a word."""
    return sum(any(map(str.isalnum, part)) for part in _SENTENCE.findall(text))
