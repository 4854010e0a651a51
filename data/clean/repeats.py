"""What repeats within a document: words, lines, paragraphs and runs of words, for many documents at once by sorting hashes.

A run of n words repeats only where the runs of n - 1 words at its two ends do, so candidates become fewer with every size,
and all ten sizes cost little more than the first two.
"""

from __future__ import annotations

import numpy as np

from data.clean.words import Lines, Words, extend, powers
from data.order import key, mix

_CHARACTERS = 1 << 24  # above the characters of any n-gram that is told apart by them


def occurrences(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how often each key occurs, int64 like keys; one index of each different key).

    Sorts keys with their index in the low bits, many times as fast as an argsort. Those bits of the key are lost: among the
    20,000 words of a usual batch two keys meet by chance in one batch of three million.
    """
    mask = np.uint64((1 << max(len(keys) - 1, 1).bit_length()) - 1)
    packed = np.sort(keys & ~mask | np.arange(len(keys), dtype=np.uint64))
    order, packed = (packed & mask).astype(np.int64), packed & ~mask
    new = np.ones(len(keys), dtype=bool)
    new[1:] = packed[1:] != packed[:-1]
    first = np.flatnonzero(new)
    lengths = np.diff(np.append(first, len(keys)))
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = np.repeat(lengths, lengths)
    return found, order[first]


def within(keys: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Keys that are equal only within one text."""
    return mix(keys + text.astype(np.uint64), key("clean repeats"))


def entropy_and_kinds(words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(entropy of words in nats [texts], different words [texts], how often each word occurs in its text [W])."""
    counts, first = occurrences(within(words.hashes, words.text))
    texts = len(words.per_text)
    kinds = np.bincount(words.text[first], minlength=texts)
    # H = log W - (1/W) sum over different words of c log c
    weighted = np.bincount(words.text[first], counts[first] * np.log(counts[first]), texts)
    size = np.maximum(words.per_text, 1)
    return np.maximum(np.log(size) - weighted / size, 0.0), kinds, counts


def repeated_ngrams(
    words: Words, counts: np.ndarray, top: tuple[int, ...], duplicate: tuple[int, ...]
) -> dict[int, np.ndarray]:
    """Size -> characters [texts]: of the most frequent n-gram (sizes in top), in all that repeat (sizes in duplicate).

    counts: how often each word occurs in its text.
    """
    texts, length = len(words.per_text), words.ends - words.starts
    before = np.concatenate([[0], np.cumsum(length)])
    at = np.flatnonzero(counts > 1)  # where repeated runs of the size before begin
    keys = within(words.hashes, words.text)[at]
    found: dict[int, np.ndarray] = {}
    for size in range(2, max((*top, *duplicate)) + 1):
        goes_on = np.flatnonzero(np.diff(at) == 1)  # the run that begins at the next word repeats too
        goes_on = goes_on[words.text[at[goes_on]] == words.text[at[goes_on] + size - 1]]
        at = at[goes_on]
        keys = extend(keys[goes_on], words.hashes[at + size - 1])
        count, _ = occurrences(keys)
        many = count > 1
        at, keys, count = at[many], keys[many], count[many]
        if size in top:
            characters = before[at + size] - before[at]
            best = np.zeros(texts, dtype=np.int64)
            np.maximum.at(best, words.text[at], count * _CHARACTERS + np.minimum(characters, _CHARACTERS - 1))
            found[size] = best // _CHARACTERS * (best % _CHARACTERS)
        if size in duplicate:
            covered = np.zeros(len(length), dtype=bool)
            for place in range(size):
                covered[at + place] = True
            index = np.flatnonzero(covered)
            found[size] = np.bincount(words.text[index], length[index], texts)
    return found


Shares = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""By text: repeated ones, all, characters of the repeated ones, characters of all."""


def duplicate_lines(lines: Lines, texts: int) -> Shares:
    """Lines told apart exactly, case included; the first of equals is no copy."""
    return _shares(within(lines.hashes, lines.text), lines.text, lines.ends - lines.starts, texts)


def duplicate_paragraphs(lines: Lines, texts: int) -> Shares:
    """The same for runs of lines without an empty one between them."""
    begins = np.ones(len(lines.starts), dtype=bool)
    begins[1:] = (np.diff(lines.number) > 1) | (np.diff(lines.text) > 0)
    first = np.flatnonzero(begins)
    if not len(first):
        return _shares(lines.hashes, lines.text, lines.ends, texts)
    place = np.arange(len(begins)) - first[np.cumsum(begins) - 1]
    keys = np.add.reduceat(lines.hashes * powers(int(place.max()) + 1)[0][place], first)
    return _shares(
        within(keys, lines.text[first]), lines.text[first], np.add.reduceat(lines.ends - lines.starts, first), texts
    )


def _shares(keys: np.ndarray, text: np.ndarray, length: np.ndarray, texts: int) -> Shares:
    copy = np.ones(len(keys), dtype=bool)
    copy[occurrences(keys)[1]] = False
    return (
        np.bincount(text[copy], minlength=texts),
        np.bincount(text, minlength=texts),
        np.bincount(text[copy], length[copy], texts),
        np.bincount(text, length, texts),
    )
