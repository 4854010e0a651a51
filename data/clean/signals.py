"""Quality signals of documents as columns, so that what is kept may be decided later, and differently for each run.

After Gopher (Rae et al. 2021, arXiv 2112.11446, appendix A.1), C4 (Raffel et al. 2020, arXiv 1910.10683, section 2.2) and
RedPajama-V2 (Weber et al. 2024, arXiv 2411.12372). Where these leave open what a word or a line is:

- a token is a run of anything but white space; a word is a run of letters, marks and digits without regard to case
  (`data.clean.words`); a line is what stands between line ends, stripped, and empty ones do not count; a paragraph is a
  run of such lines without an empty one between them, and its characters are those of its lines;
- shares are 0 where there is nothing to share;
- an n-gram is n words in a row; its characters are those of its words. `top_ngram`: occurrences times characters of the
  most frequent one, of all words' characters, at most 1, and 0 where none occurs twice; `duplicate_ngrams`: characters of
  all words that lie in an n-gram which occurs more than once, each word counted once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import ClassVar

import numpy as np

from data.clean.base import Outcome, Seams, Step, with_columns
from data.clean.repeats import duplicate_lines, duplicate_paragraphs, entropy_and_kinds, repeated_ngrams
from data.clean.words import DIGIT, LETTER, SINGLE, SPACE, Lines, Texts, Tokens, Words, word_hashes
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
    words, tokens = Words(batch), Tokens(batch)
    found = {**_of_characters(batch, tokens), **_of_lines(batch, tokens), **_of_words(texts, words)}
    return {name: found[name] for name in SIGNALS}


def _of_characters(batch: Texts, tokens: Tokens) -> dict[str, np.ndarray]:
    """Signals of single characters and of tokens."""
    letter = (batch.kinds == LETTER) | (batch.kinds == SINGLE)
    codes, upper = batch.codes, batch.upper
    # 1 for a letter, 2 for one in upper case: what a token's letters are, and white space adds nothing
    cases = letter.view(np.uint8) + upper.view(np.uint8)
    of_token = np.bitwise_or.reduceat(cases, tokens.starts) if len(tokens.starts) else cases[:0]
    visible, letters = _per_text(batch, batch.kinds != SPACE), _per_text(batch, letter)
    counts = np.diff(batch.begins) - 1
    ellipses = _per_text(batch, codes == 0x2026) + _count(
        batch.which(_threes(np.flatnonzero(codes == ord(".")))), batch
    )
    return {
        "character_count": counts,
        "token_count": tokens.per_text,
        "sentence_count": _count(batch.which(_sentence_ends(batch)), batch),
        "mean_token_length": share(visible, tokens.per_text),
        "hash_ratio": share(_per_text(batch, codes == ord("#")), tokens.per_text),
        "ellipsis_ratio": share(ellipses, tokens.per_text),
        "alphabetic_token_share": share(_count(tokens.text[of_token > 0], batch), tokens.per_text),
        "capital_token_share": share(_count(tokens.text[of_token == 2], batch), tokens.per_text),
        "uppercase_share": share(_per_text(batch, upper), letters),
        "letter_share": share(letters, visible),
        "digit_share": share(_per_text(batch, batch.kinds == DIGIT), visible),
        "curly_bracket_share": share(_per_text(batch, (codes == ord("{")) | (codes == ord("}"))), counts),
    }


def _of_lines(batch: Texts, tokens: Tokens) -> dict[str, np.ndarray]:
    """Signals of lines and paragraphs."""
    found = Lines(batch, tokens)
    text, ends = found.text, found.ends
    count = _count(text, batch)
    begin, end = batch.codes[found.starts], batch.codes[ends - 1]
    ellipsis = end == 0x2026
    ellipsis |= (ends - found.starts >= 3) & np.logical_and.reduce(
        [batch.codes[ends - back] == ord(".") for back in (1, 2, 3)]
    )
    lines, paragraphs = duplicate_lines(found, batch.count), duplicate_paragraphs(found, batch.count)
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


def _per_text(batch: Texts, marked: np.ndarray) -> np.ndarray:
    """How many characters of each text are marked: bool [N] -> int64 [texts]."""
    begins = batch.begins.tolist()
    return np.array([np.count_nonzero(marked[a:b]) for a, b in pairwise(begins)], dtype=np.int64)


def _count(text: np.ndarray, batch: Texts) -> np.ndarray:
    return np.bincount(text, minlength=batch.count)


def _is_one_of(codes: np.ndarray, letters: str) -> np.ndarray:
    return np.isin(codes, np.array([ord(letter) for letter in letters], dtype=codes.dtype))


def _threes(at: np.ndarray) -> np.ndarray:
    """Positions at which three in a row of the positions begin, without overlap, as str.count counts."""
    first = np.flatnonzero(np.diff(at, prepend=-2) > 1)
    lengths = np.diff(np.append(first, len(at)))
    return np.repeat(at[first], lengths // 3)


def _sentence_ends(batch: Texts) -> np.ndarray:
    """Positions of the last mark of each sentence."""
    end = np.zeros(len(batch.codes), dtype=bool)
    for letter in SENTENCE_ENDS:
        end |= batch.codes == ord(letter)
    at = np.flatnonzero(end)  # never the last character, which is a line end
    wide = batch.codes[at] >= 0x3000  # scripts without spaces go on at once
    return at[~end[at + 1] & ((batch.kinds[at + 1] < LETTER) | wide)]


@cache
def _hashes_of(words: tuple[str, ...]) -> list[np.uint64]:
    return [word_hashes(word)[0] for word in words]
