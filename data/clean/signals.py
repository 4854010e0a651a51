"""Quality signals of documents as columns, so that what is kept may be decided later, and differently for each run.

After Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1), C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2) and
RedPajama-V2 (Weber et al. 2024, arXiv 2411.12372). Where these leave open what a word or a line is:

- a token is a run of anything but white space; a word is a run of letters, marks and digits without regard to case
  (`data.clean.words`); a line is what stands between line ends, stripped, and empty ones do not count; a paragraph is a
  run of lines without an empty one between them;
- shares are 0 where there is nothing to share;
- an n-gram is n words in a row; its characters are those of its words. `top_ngram`: occurrences times characters of the
  most frequent one, of all words' characters, at most 1, and 0 where none occurs twice; `duplicate_ngrams`: characters of
  all words that lie in an n-gram which occurs more than once, each word counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from data.clean.base import Outcome, Seams, Step, with_columns
from data.clean.repeats import duplicate_lines, duplicate_paragraphs, entropy_and_kinds, repeated_ngrams
from data.clean.words import DIGIT, LETTER, SINGLE, SPACE, Texts, Words, word_hashes
from data.config import DataError
from data.document import Document

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""Gopher's: a text in English has at least two of them."""

BULLETS = "-*\u2022\u2023\u25b6\u25c0\u25e6\u25a0\u25a1\u25aa\u25ab\u2013"
"""RedPajama-V2's bullet points, and the two that plain text uses."""

LINE_ENDS = '.!?"\u201d\u2019\u3002\uff01\uff1f\u300d\u300f\u0964'
"""C4's terminal punctuation (full stop, exclamation and question mark, end quotation mark), and the same of other scripts."""

SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f\u0964"

TOP_SIZES, DUPLICATE_SIZES = (2, 3, 4), (5, 6, 7, 8, 9, 10)

SIGNALS: dict[str, str] = {
    "character_count": "characters",
    "token_count": "tokens between white space",
    "word_count": "words",
    "line_count": "lines that are not empty",
    "sentence_count": "ends of sentences: one of .!?… and the like before anything but letters and digits",
    "mean_token_length": "characters of tokens, a token (Gopher's mean word length)",
    "hash_ratio": "hash signs a token (Gopher's symbol-to-word ratio)",
    "ellipsis_ratio": "ellipses a token",
    "bullet_line_share": "lines that begin with a bullet, of lines",
    "ellipsis_line_share": "lines that end with an ellipsis, of lines",
    "terminal_line_share": "lines that end with a terminal punctuation mark, of lines",
    "alphabetic_token_share": "tokens with a letter, of tokens",
    "capital_token_share": "tokens with letters, all of them upper case, of tokens",
    "uppercase_share": "upper-case letters, of letters",
    "letter_share": "letters, of characters that are not white space",
    "digit_share": "digits, of characters that are not white space",
    "stop_word_count": "how many different of Gopher's eight stop words occur",
    "unique_word_share": "different words, of words",
    "word_entropy": "entropy of the words' frequencies, in nats",
    "lorem_ipsum_count": "occurrences of the words lorem ipsum",
    "curly_bracket_share": "curly brackets, of characters",
    "duplicate_line_share": "lines that occurred before in the document, of lines",
    "duplicate_line_characters": "their characters, of lines' characters",
    "duplicate_paragraph_share": "paragraphs that occurred before in the document, of paragraphs",
    "duplicate_paragraph_characters": "their characters, of paragraphs' characters",
    **{
        f"top_{size}gram": f"characters of the most frequent run of {size} words, of words' characters"
        for size in TOP_SIZES
    },
    **{
        f"duplicate_{size}grams": f"characters in runs of {size} words that occur repeatedly, of words' characters"
        for size in DUPLICATE_SIZES
    },
}
"""Every signal and what it is. Counts are int, shares float between 0 and 1."""


@dataclass(frozen=True)
class SignalsConfig:
    """Writes quality signals as columns (word counts, shares of symbols, lines and repetitions, …); drops nothing."""

    name: ClassVar[str] = "signals"
    reads: ClassVar[tuple[str, ...]] = ()

    only: tuple[str, ...] = ()
    """Names of the signals to keep as columns; empty = all. `gopher` and `c4` after this step need some (they say which)."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in SIGNALS]:
            raise DataError(f"only = {list(self.only)}: no signal {unknown[0]!r}; choose of {', '.join(SIGNALS)}")

    @property
    def writes(self) -> tuple[str, ...]:
        """The columns: chosen signals in their fixed order."""
        return tuple(name for name in SIGNALS if not self.only or name in self.only)

    def make(self, seams: Seams) -> Step:
        return _Signals(self)


class _Signals:
    def __init__(self, config: SignalsConfig) -> None:
        self.names = config.writes

    def __call__(self, documents: Sequence[Document]) -> list[Outcome]:
        found = signals([document.text for document in documents])
        rows = zip(*(found[name].tolist() for name in self.names), strict=True)
        return [
            with_columns(document, dict(zip(self.names, row, strict=True)))
            for document, row in zip(documents, rows, strict=True)
        ]


def signals(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Every signal of every text: name -> int64 or float64 [texts]."""
    batch = Texts(texts)
    words, tokens = Words(batch), _Tokens(batch)
    found = {**_of_characters(batch, tokens), **_of_lines(batch, tokens), **_of_words(texts, words)}
    return {name: found[name] for name in SIGNALS}


class _Tokens:
    """Runs of anything but white space. starts, ends: int64 [T]; text: int64 [T]; per_text: int64 [texts]."""

    def __init__(self, batch: Texts) -> None:
        borders = np.flatnonzero(np.diff(batch.kinds != SPACE, prepend=False))  # a batch ends with a line end
        self.starts, self.ends = borders[::2], borders[1::2]
        self.text = batch.which(self.starts)
        self.per_text = np.bincount(self.text, minlength=batch.count)


def _of_characters(batch: Texts, tokens: _Tokens) -> dict[str, np.ndarray]:
    """Signals of single characters and of tokens."""
    per_text = _Counter(batch)
    letter = (batch.kinds == LETTER) | (batch.kinds == SINGLE)
    codes = batch.codes
    letters, uppers = _running(letter), _running(batch.upper)
    in_token = letters[tokens.ends] - letters[tokens.starts]
    capital = (in_token > 0) & (uppers[tokens.ends] - uppers[tokens.starts] == in_token)
    visible = per_text.of_running(_running(batch.kinds != SPACE))
    letter_count = per_text.of_running(letters)
    counts = np.diff(batch.begins) - 1
    dots = _run_starts(codes == ord("."), 3)
    return {
        "character_count": counts,
        "token_count": tokens.per_text,
        "sentence_count": per_text(_sentence_ends(batch)),
        "mean_token_length": share(visible, tokens.per_text),
        "hash_ratio": share(per_text(codes == ord("#")), tokens.per_text),
        "ellipsis_ratio": share(per_text(codes == 0x2026) + per_text.of_positions(dots), tokens.per_text),
        "alphabetic_token_share": share(_count(tokens.text[in_token > 0], batch), tokens.per_text),
        "capital_token_share": share(_count(tokens.text[capital], batch), tokens.per_text),
        "uppercase_share": share(per_text.of_running(uppers), letter_count),
        "letter_share": share(letter_count, visible),
        "digit_share": share(per_text(batch.kinds == DIGIT), visible),
        "curly_bracket_share": share(per_text((codes == ord("{")) | (codes == ord("}"))), counts),
    }


def _of_lines(batch: Texts, tokens: _Tokens) -> dict[str, np.ndarray]:
    """Signals of lines and paragraphs."""
    line_ends = np.flatnonzero(batch.codes == ord("\n"))
    number = np.searchsorted(line_ends, tokens.starts)  # of the line that holds each token
    first = np.flatnonzero(np.diff(number, prepend=-1))
    last = np.append(first[1:], len(number)) - 1
    last = last[: len(first)]
    starts, ends, text, number = tokens.starts[first], tokens.ends[last], tokens.text[first], number[first]
    count = _count(text, batch)
    begin, end = batch.codes[starts], batch.codes[ends - 1]
    ellipsis = end == 0x2026
    ellipsis |= (ends - starts >= 3) & np.logical_and.reduce(
        [batch.codes[ends - back] == ord(".") for back in (1, 2, 3)]
    )
    lines = duplicate_lines(batch, starts, ends, text)
    paragraphs = duplicate_paragraphs(batch, starts, ends, text, number)
    return {
        "line_count": count,
        "bullet_line_share": share(_count(text[_is_one_of(begin, BULLETS)], batch), count),
        "ellipsis_line_share": share(_count(text[ellipsis], batch), count),
        "terminal_line_share": share(_count(text[_is_one_of(end, LINE_ENDS)], batch), count),
        "duplicate_line_share": share(lines[0], lines[1]),
        "duplicate_line_characters": share(lines[2], lines[3]),
        "duplicate_paragraph_share": share(paragraphs[0], paragraphs[1]),
        "duplicate_paragraph_characters": share(paragraphs[2], paragraphs[3]),
    }


def _of_words(texts: Sequence[str], words: Words) -> dict[str, np.ndarray]:
    """Signals of words and their repetition."""
    stops = np.zeros(len(words.hashes), dtype=np.uint8)
    for place, stop in enumerate(_hashes_of(STOP_WORDS)):
        stops |= (words.hashes == stop).astype(np.uint8) << place
    seen = np.zeros(len(texts), dtype=np.uint8)
    np.bitwise_or.at(seen, words.text[stops > 0], stops[stops > 0])
    lorem, ipsum = _hashes_of(("lorem", "ipsum"))
    at = np.flatnonzero(words.hashes[:-1] == lorem)
    at = at[(words.hashes[at + 1] == ipsum) & (words.text[at + 1] == words.text[at])]
    entropy, kinds, counts = entropy_and_kinds(words)
    characters = np.bincount(words.text, words.ends - words.starts, len(texts))
    repeated = repeated_ngrams(words, counts, TOP_SIZES, DUPLICATE_SIZES)
    return {
        "word_count": words.per_text,
        "stop_word_count": np.bitwise_count(seen).astype(np.int64),
        "unique_word_share": share(kinds, words.per_text),
        "word_entropy": entropy,
        "lorem_ipsum_count": np.bincount(words.text[at], minlength=len(texts)),
        **{f"top_{size}gram": np.minimum(share(repeated[size], characters), 1.0) for size in TOP_SIZES},
        **{f"duplicate_{size}grams": share(repeated[size], characters) for size in DUPLICATE_SIZES},
    }


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole in float64, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


class _Counter:
    """Counts by text of what is marked at characters."""

    def __init__(self, batch: Texts) -> None:
        self.begins = batch.begins

    def __call__(self, marked: np.ndarray) -> np.ndarray:
        """marked: bool [N] -> int64 [texts]."""
        return self.of_positions(np.flatnonzero(marked))

    def of_positions(self, positions: np.ndarray) -> np.ndarray:
        """positions: sorted int64 -> int64 [texts]."""
        return np.diff(np.searchsorted(positions, self.begins))

    def of_running(self, running: np.ndarray) -> np.ndarray:
        """running: counts before each character, [N + 1] -> int64 [texts]."""
        return np.diff(running[self.begins]).astype(np.int64)


def _count(text: np.ndarray, batch: Texts) -> np.ndarray:
    return np.bincount(text, minlength=batch.count)


def _running(marked: np.ndarray) -> np.ndarray:
    found = np.zeros(len(marked) + 1, dtype=np.int32)
    np.cumsum(marked, out=found[1:])
    return found


def _is_one_of(codes: np.ndarray, letters: str) -> np.ndarray:
    return np.isin(codes, np.array([ord(letter) for letter in letters], dtype=codes.dtype))


def _run_starts(marked: np.ndarray, length: int) -> np.ndarray:
    """Positions where each `length` of a run of marked characters is complete: str.count without overlap."""
    borders = np.flatnonzero(np.diff(marked, prepend=False))
    starts, ends = borders[::2], borders[1::2]
    times = (ends - starts) // length
    return np.repeat(starts, times)


def _sentence_ends(batch: Texts) -> np.ndarray:
    end = np.zeros(len(batch.codes), dtype=bool)
    for letter in SENTENCE_ENDS:
        end |= batch.codes == ord(letter)
    at = np.flatnonzero(end)  # never the last character, which is a line end
    following = batch.kinds[at + 1]
    wide = batch.codes[at] >= 0x3000  # scripts without spaces go on at once
    return_at = at[(~end[at + 1]) & ((following < LETTER) | wide)]
    found = np.zeros(len(end), dtype=bool)
    found[return_at] = True
    return found


@cache
def _hashes_of(words: tuple[str, ...]) -> list[np.uint64]:
    return [word_hashes(word)[0] for word in words]
