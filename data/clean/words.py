"""Words of many texts at once, as arrays: where each begins and ends, and a 64-bit hash of it.

A word is a run of letters, marks and digits, without regard to case; everything else parts words. Scripts that are written
without spaces (Han, kana, Thai, Lao, Khmer, Burmese) give one word a character, so that n-grams of words mean something there.

Hashes of ranges of text are differences of one running sum: with H[i] = sum over j < i of t(c_j) r^j (mod 2^64), the range
a … b - 1 hashes to (H[b] - H[a]) r^-a, whatever stands around it (Karp and Rabin 1987). t maps characters to random numbers.

Memory: about 70 bytes a character of a batch, which holds at least one document; corpus.max_document_bytes bounds that.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from data.order import key, mix

LIMIT = 0x30000  # code points above it are all taken for one symbol: ideographs of the rarest, tags, private use
SPACE, SYMBOL, LETTER, DIGIT, SINGLE = range(5)
"""Kinds of characters. SINGLE: a letter that is a word of its own."""

_SINGLES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, LIMIT - 1),
)
_RATIO = np.uint64(key("clean words", "ratio") & ~3 | 3)  # 3 mod 4: r^k - 1 then has the fewest factors of two
_STEP = np.uint64(key("clean words", "step") | 1)
_INVERSE = np.uint64(pow(int(_RATIO), -1, 1 << 64))


class Texts:
    """A batch of texts as one line of code points, each text followed by a line end.

    codes: uint32 [N]; begins: int64 [texts + 1], where each text begins, and N.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join(texts) + "\n" if texts else ""
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        self.codes = np.minimum(codes, np.uint32(LIMIT - 1))
        self.begins = np.cumsum([0, *(len(text) + 1 for text in texts)], dtype=np.int64)
        self.count = len(texts)

    @cached_property
    def kinds(self) -> np.ndarray:
        """uint8 [N]: SPACE, SYMBOL, LETTER, DIGIT or SINGLE."""
        return _tables()[0].take(self.codes)

    @cached_property
    def upper(self) -> np.ndarray:
        """bool [N]: upper-case letters."""
        return _tables()[2].take(self.codes)

    @cached_property
    def folded(self) -> np.ndarray:
        """Running sum over characters without regard to case, uint64 [N + 1], for `hashes`."""
        return _running_sum(_tables()[1].take(self.codes))

    def which(self, positions: np.ndarray) -> np.ndarray:
        """The text that each position lies in, int64."""
        return np.searchsorted(self.begins, positions, side="right") - 1


class Words:
    """The words of a batch. starts, ends: int64 [W] positions in its codes; text: int64 [W]; hashes: uint64 [W]."""

    def __init__(self, texts: Texts) -> None:
        in_word = texts.kinds >= LETTER
        single = np.flatnonzero(texts.kinds == SINGLE)
        borders = np.diff(
            in_word, prepend=False
        )  # where a word begins, and where one has ended: a batch ends with a line end
        if len(single):
            borders[single] = borders[single + 1] = True
        at = np.flatnonzero(borders)
        if len(single):  # a border may now end one word and begin the next
            inside = in_word[at]
            self.starts, self.ends = at[inside], at[1:][inside[:-1]]
        else:
            self.starts, self.ends = at[::2].copy(), at[1::2].copy()
        self.text = texts.which(self.starts)
        self.hashes = hashes(texts.folded, self.starts, self.ends)
        self.per_text = np.bincount(self.text, minlength=texts.count)

    def ngrams(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """(hashes uint64 [G], index of the first word int64 [G]) of all runs of `size` words within one text."""
        count = max(0, len(self.hashes) - size + 1)
        found = np.zeros(count, dtype=np.uint64)
        for place in range(size):
            found = extend(found, self.hashes[place : place + count])
        first = np.flatnonzero(self.text[:count] == self.text[size - 1 :][:count])
        return found[first], first


class Tokens:
    """Runs of anything but white space. starts, ends: int64 [T]; text: int64 [T]; per_text: int64 [texts]."""

    def __init__(self, texts: Texts) -> None:
        borders = np.flatnonzero(np.diff(texts.kinds != SPACE, prepend=False))  # a batch ends with a line end
        self.starts, self.ends = borders[::2].copy(), borders[1::2].copy()
        self.text = texts.which(self.starts)
        self.per_text = np.bincount(self.text, minlength=texts.count)


class Lines:
    """Lines that hold a token, without the white space around it. starts, ends: int64 [L]; text: int64 [L]; number: int64 [L],
    of the line among all lines of the batch, empty ones too; hashes: uint64 [L], with regard to case."""

    def __init__(self, texts: Texts, tokens: Tokens) -> None:
        line_ends = np.flatnonzero(texts.codes == ord("\n"))
        before = np.searchsorted(tokens.starts, line_ends)  # tokens before each line's end
        first = np.concatenate([[0], before[:-1]]).astype(np.int64)[: len(before)]
        self.number = np.flatnonzero(before > first)
        self.starts, self.ends = tokens.starts[first[self.number]], tokens.ends[before[self.number] - 1]
        self.text = tokens.text[first[self.number]]
        forward, back = powers(len(texts.codes) + 1)
        values = _tables()[3].take(texts.codes) * forward[:-1]
        sums = (
            np.add.reduceat(values, np.stack([self.starts, self.ends], axis=1).ravel())[::2]
            if len(self.starts)
            else values[:0]
        )
        self.hashes = mix(sums * back[self.starts], key("clean words", "range"))


def extend(hashes: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Hashes of runs of words, each one word longer: words' hashes are random, so a polynomial of them is."""
    return hashes * _STEP + following


def hashes(running: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hashes, uint64, of the ranges starts … ends - 1 of a text with that running sum."""
    return mix((running[ends] - running[starts]) * powers(len(running))[1][starts], key("clean words", "range"))


def word_hashes(text: str) -> np.ndarray:
    """Hashes of the words of one text, uint64 [W]."""
    return Words(Texts([text])).hashes


def _running_sum(values: np.ndarray) -> np.ndarray:
    found = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers(len(values) + 1)[0][:-1], out=found[1:])
    return found


_POWERS = [np.ones(1, dtype=np.uint64), np.ones(1, dtype=np.uint64)]


def powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers 0 … size - 1 of the ratio and of its inverse, uint64."""
    for place, base in enumerate((_RATIO, _INVERSE)):
        if len(_POWERS[place]) < size:
            grown = np.full(1 << (size - 1).bit_length(), base, dtype=np.uint64)
            grown[0] = 1
            _POWERS[place] = np.multiply.accumulate(grown)
    return _POWERS[0][:size], _POWERS[1][:size]


@cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every code point below LIMIT: kind uint8, case-less random number uint64, whether upper case, random number."""
    kinds = np.full(LIMIT, SYMBOL, dtype=np.uint8)
    folded = np.arange(LIMIT, dtype=np.uint64)
    upper = np.zeros(LIMIT, dtype=bool)
    for code in range(LIMIT):
        letter = chr(code)
        category = unicodedata.category(letter)
        if category[0] in "LM":
            kinds[code] = LETTER
            if category in ("Lu", "Lt"):
                folded[code], upper[code] = ord(letter.lower()[0]), category == "Lu"
        elif category[0] == "N":
            kinds[code] = DIGIT
        elif letter.isspace():
            kinds[code] = SPACE
    for first, last in _SINGLES:
        part = kinds[first : last + 1]
        part[part == LETTER] = SINGLE
    exact = mix(np.arange(LIMIT, dtype=np.uint64), key("clean words", "exact"))
    return kinds, mix(folded, key("clean words", "folded")), upper, exact
