"""Byte-level vocabularies by words: each different word is encoded once and looked up ever after, many at a time.

Nearly all words of a text were seen before, yet an encoder splits, hashes and merges every one anew: with 32,768 ids
and the standard library's text tiktoken makes 3.4 million tokens a second and core, tokenizers 0.85. Here the text of many
documents is cut into words by a few operations on arrays of bytes, their bytes are the keys of a hash table in arrays,
and ids are gathered: 16 million.

Cuts need not be all borders of the vocabulary's pattern, only some of them (`_Cuts` says why each is one): a word is
then one or several of the pattern's, and the encoder splits it further. Anything that is not ASCII is never cut, which
is right whatever Unicode says of it, and slower: such words are longer and less often seen again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data.config import DataError

BATCH_BYTES = 1 << 18
"""Text that is encoded at once: arrays over it should stay in the processor's caches."""

MOST_WORDS = 1 << 19
"""Words that are remembered; about 100 bytes each."""

LONGEST = 64
"""Bytes of the longest word that is remembered; only those of up to _TABLE_BYTES are in the table, others in a dictionary."""

_TABLE_BYTES = 24

_SLOT_BITS = 20
_LAST_SLOT = (1 << _SLOT_BITS) - 1
_END = 0xFF  # separates documents: no byte of UTF-8
_MIX = [np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9)]
_LETTER, _DIGIT, _OTHER, _QUOTE, _TAB, _LINE, _BLANK, _HIGH, _BORDER = range(9)


def _classes() -> np.ndarray:
    """The class of each byte, uint8 [256]."""
    found = np.full(256, _OTHER, np.uint8)
    found[0x80:] = _HIGH
    for class_, characters in (
        (_LETTER, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        (_DIGIT, "0123456789"),
        (_QUOTE, "'"),
        (_TAB, "\t\v\f"),
        (_LINE, "\r\n"),
        (_BLANK, " "),
    ):
        found[list(characters.encode())] = class_
    found[_END] = _BORDER
    return found


class _Cuts:
    """Where a pattern certainly has a border, by the classes of two neighbours, and of the one after them.

    A run of letters or digits ends where another class begins, under every pattern here. A white space after anything
    else begins a word, except where line ends are kept with the punctuation before them. Of white space before a word,
    `gpt2` leaves the last character to the word when it is a blank and makes it one of its own otherwise.
    """

    def __init__(self, pattern: str) -> None:
        words, punctuation, space = (_LETTER, _DIGIT), (_OTHER, _QUOTE), (_TAB, _LINE, _BLANK)
        ascii_ = (*words, *punctuation)
        pairs = np.zeros((16, 16), np.uint8)
        for one in words:
            for other in (*ascii_, *space):
                pairs[one, other] = one != other
        pairs[_OTHER, _DIGIT] = pairs[_QUOTE, _DIGIT] = 1
        for one in punctuation:
            pairs[one, _BLANK] = 1
        for other in ascii_:
            pairs[_LINE, other] = 1
        if pattern == "gpt2":
            pairs[_OTHER, _LETTER] = 1  # not after a quote: 's, 't, … are words
            for one in punctuation:
                pairs[one, space] = 1
            for other in ascii_:
                pairs[_TAB, other] = 1
            for one in (*space, _HIGH):
                pairs[one, space] = 2  # a border where a word follows, whether or not what is high is white space
        pairs[_BORDER, :] = pairs[:, _BORDER] = 1
        classes = _classes()
        self._pairs = pairs.tobytes()
        self._class = classes.tobytes()
        self._first = (classes << 4).tobytes()
        self._after = np.where(np.isin(classes, ascii_), 3, 1).astype(np.uint8).tobytes()

    def find(self, data: bytes) -> np.ndarray:
        """Places in the data where a word begins, the first at 0, int64 [words]; the data ends with _END."""
        first = np.frombuffer(data.translate(self._first), np.uint8)
        second = np.frombuffer(data.translate(self._class), np.uint8)
        after = np.frombuffer(data.translate(self._after), np.uint8)
        kinds = np.frombuffer((first[:-1] | second[1:]).tobytes().translate(self._pairs), np.uint8)
        mask = np.empty(len(data), bool)
        mask[0] = True
        np.not_equal(kinds[:-1] & after[2:], 0, out=mask[1:-1])
        mask[-1] = True
        return np.flatnonzero(mask)


class WordEncoder:
    """Encodes documents. encode: ids of any text, whose words by the named pattern are encoded each alone. Every document
    ends with `eod`; ids are in the given dtype."""

    def __init__(self, encode: Callable[[str], list[int]], pattern: str, eod: int, dtype: np.dtype) -> None:
        self._encode = encode
        self._cuts = _Cuts(pattern)
        self._eod, self._dtype = eod, dtype
        self._entry_of = np.full(1 << _SLOT_BITS, -1, np.int64)
        # Keys by entry and not by slot: frequent words are met early, so theirs are together and stay in the caches.
        self._keys = [np.zeros(1 << 12, np.uint64) for _ in range(3)]
        self._known: dict[bytes, int] = {}
        self._starts, self._counts = np.zeros(1 << 12, np.int64), np.zeros(1 << 12, np.int64)
        self._ids = np.zeros(1 << 14, dtype)
        self._used = 0
        key = [np.array([eight], np.uint64) for eight in (_END, 0, 0)]
        self._place(self._remember(bytes([_END]), [eod]), int(_slots(*key)[0]), key, 0)

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text with `eod` behind them; DataError for text that is not Unicode (lone surrogates)."""
        try:
            coded = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise DataError(f"text is not valid Unicode and cannot be encoded: {error}") from error
        found: list[np.ndarray] = []
        batch: list[bytes] = []
        size = 0
        for data in coded:
            if b"\0" in data:  # zeros are what keys are filled up with
                found += self._batch(batch)
                found.append(np.array([*self._encode(data.decode()), self._eod], self._dtype))
                batch, size = [], 0
                continue
            batch.append(data)
            size += len(data)
            if size >= BATCH_BYTES:
                found += self._batch(batch)
                batch, size = [], 0
        return found + self._batch(batch)

    def _batch(self, documents: list[bytes]) -> list[np.ndarray]:
        if not documents:
            return []
        data = bytes([_END]).join([*documents, b""])
        begins = self._cuts.find(data)
        entries = self._look_up(data, begins)
        counts = self._counts[entries]
        ends = np.cumsum(counts)
        ids = self._ids[np.repeat(self._starts[entries] - ends + counts, counts) + np.arange(ends[-1])]
        borders = np.cumsum([len(document) + 1 for document in documents]) - 1
        stops = ends[np.searchsorted(begins, borders)].tolist()
        return [ids[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def _look_up(self, data: bytes, begins: np.ndarray) -> np.ndarray:
        """The entry of each word, int64 [words]; words that were not known are then."""
        lengths = np.diff(begins, append=len(data))
        keys = _keys(data, begins, lengths)
        slots = _slots(*keys)
        entries = self._entry_of.take(slots)
        left = np.flatnonzero((entries >= 0) & self._differ(entries, keys))
        while len(left):  # another word has the slot: the next one
            slots[left] = (slots[left] + 1) & _LAST_SLOT
            entries[left] = self._entry_of[slots[left]]
            left = left[(entries[left] >= 0) & self._differ(entries[left], [key[left] for key in keys])]
        entries[lengths > _TABLE_BYTES] = -1
        self._learn(data, begins, entries, slots, keys)
        return entries

    def _differ(self, entries: np.ndarray, keys: Sequence[np.ndarray]) -> np.ndarray:
        """Whether the words of entries are not those of the keys, bool [words]."""
        known, wanted = self._keys, keys
        differ = known[0].take(entries) != wanted[0]
        differ |= known[1].take(entries) != wanted[1]
        differ |= known[2].take(entries) != wanted[2]
        return differ

    def _learn(
        self, data: bytes, begins: np.ndarray, entries: np.ndarray, slots: np.ndarray, keys: Sequence[np.ndarray]
    ) -> None:
        """Fills the gaps in `entries`. Words that are not remembered get entries behind those that are, which hold until
        the next batch."""
        passing: dict[bytes, list[int]] = {}
        wanted: list[tuple[int, bytes]] = []
        unknown = np.flatnonzero(entries < 0)
        stops = np.append(begins, len(data))[unknown + 1].tolist()
        for word, start, stop in zip(unknown.tolist(), begins[unknown].tolist(), stops, strict=True):
            text = data[start:stop]
            entry = self._known.get(text, -1)
            if entry < 0 and text not in passing:
                ids = self._encode(text.decode())
                if len(text) <= LONGEST and len(self._known) < MOST_WORDS:
                    entry = self._remember(text, ids)
                    if len(text) <= _TABLE_BYTES:
                        self._place(entry, int(slots[word]), keys, word)
                else:
                    passing[text] = ids
            if entry < 0:
                wanted.append((word, text))
            entries[word] = entry
        place, number = self._used, {}
        for entry, (text, ids) in enumerate(passing.items(), start=len(self._known)):
            place = self._write(entry, place, ids)
            number[text] = entry
        for word, text in wanted:
            entries[word] = number[text]

    def _remember(self, text: bytes, ids: list[int]) -> int:
        """Makes a word known; returns its entry."""
        entry = self._known[text] = len(self._known)
        self._used = self._write(entry, self._used, ids)
        return entry

    def _place(self, entry: int, slot: int, keys: Sequence[np.ndarray], word: int) -> None:
        """Puts an entry in the table, in the first empty slot from the given one on, with the key of a word."""
        while self._entry_of[slot] >= 0:
            slot = (slot + 1) & _LAST_SLOT
        self._entry_of[slot] = entry
        for known, key in zip(self._keys, keys, strict=True):
            known[entry] = key[word]

    def _write(self, entry: int, place: int, ids: list[int]) -> int:
        """Puts the ids of an entry at a place; returns the place behind them."""
        while entry >= len(self._starts):
            self._starts, self._counts = _doubled(self._starts), _doubled(self._counts)
            self._keys = [_doubled(key) for key in self._keys]
        while place + len(ids) > len(self._ids):
            self._ids = _doubled(self._ids)
        self._starts[entry], self._counts[entry] = place, len(ids)
        self._ids[place : place + len(ids)] = ids
        return place + len(ids)


def _doubled(array: np.ndarray) -> np.ndarray:
    return np.concatenate([array, np.zeros_like(array)])


_MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)


def _keys(data: bytes, begins: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The first, second and third eight bytes of each word, zeros where it has ended, uint64 [words] each."""
    columns = len(data) // 8 + 3
    padded = np.frombuffer(data + bytes(40), np.uint8)
    # The eight bytes from each place on, aligned: those from place 8 c + r on are at [r, c].
    eights = np.empty((8, columns), np.uint64)
    for row, line in enumerate(eights.view(np.uint8)):
        line[:] = padded[row : row + 8 * columns]
    places = (begins & 7) * columns + (begins >> 3)
    flat = eights.reshape(-1)
    keys = [flat.take(places) & _MASKS.take(np.minimum(lengths, 8))]
    for eight in (1, 2):  # few words are that long
        keys.append(np.zeros(len(begins), np.uint64))
        longer = np.flatnonzero(lengths > 8 * eight)
        rest = np.minimum(lengths[longer] - 8 * eight, 8)
        keys[-1][longer] = flat.take(places[longer] + eight) & _MASKS.take(rest)
    return keys


def _slots(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Where in the table a key is looked for first, int64 [words]."""
    mixed = first * _MIX[0] ^ second * _MIX[1]
    mixed += third
    mixed = (mixed ^ (mixed >> np.uint64(32))) * _MIX[2]
    return (mixed >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
