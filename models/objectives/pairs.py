"""Objectives that part a text in a source, which is given, and a target, which is asked for.

In a decoder both stand behind one another and the source is a prefix; for an encoder-decoder each has its part of the row.
A row holds as many units as fit; one that does not fit whole is shortened at its end before it is parted, and what is left of
the row after it is dropped, so that no source stands without its target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from models.objectives import units
from models.objectives.base import Example, Samples
from models.objectives.draw import Draws, stream_keys
from models.objectives.units import Unit


@dataclass(frozen=True)
class Pair:
    """Tokens int64 of both, and the weights float32 of what is asked for."""

    given: np.ndarray
    asked: np.ndarray
    asked_weights: np.ndarray


class Splitter(Protocol):
    """Parts a text in what is given and what is asked for. closes: an `eod` ends every target, not only the end of a text."""

    draws: ClassVar[tuple[str, ...]]
    closes: ClassVar[bool]

    def sizes(self, tokens: np.ndarray, draws: Draws, number: int) -> tuple[int, int]:
        """How many tokens source and target of a text of at least 2 tokens have, the final `eod` not counted."""

    def split(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, number: int) -> Pair:
        """The pair of unit `number` of a sample: tokens int64 [n] and weights float32 [n]."""


class Pairs:
    """An objective of pairs. encoder: tokens of a row that are the encoder's; 0 for a decoder alone."""

    marks_prefix = True

    def __init__(
        self, splitter: Splitter, seed: int, place: str, eod: int, *, by_document: bool, mode: int, encoder: int
    ) -> None:
        self.splitter, self.eod, self.mode, self.encoder = splitter, eod, mode, encoder
        self.marks_prefix = encoder == 0
        self._units = units.documents if by_document else units.whole
        self._keys = stream_keys(seed, place, splitter.draws)

    def __call__(self, samples: Samples) -> Example:
        """Row for row; documents are the units."""
        weights = samples.token_weights()
        lay = self._lay_decoder if self.encoder == 0 else self._lay_both
        rows = [
            lay(tokens, weights[row], Draws(self._keys, int(samples.indices[row])))
            for row, tokens in enumerate(samples.tokens)
        ]
        inputs, targets, counted, documents, prefix = (np.stack(part) for part in zip(*rows, strict=True))
        return Example(inputs, targets, counted, documents, prefix if self.marks_prefix else None)

    def _pairs(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, rooms: tuple[int, int]) -> list[Pair]:
        """Pairs of a row that fit into rooms for all sources and all targets; one room for both is (room, -1)."""
        found: list[Pair] = []
        first, second = rooms
        for number, unit in enumerate(self._units(tokens, weights, self.eod)):
            length = self._fitting(tokens, unit, draws, number, (first, second))
            if length < 2:
                break
            found.append(self._pair(tokens, weights, unit, length, draws, number))
            used = len(found[-1].given), len(found[-1].asked)
            first, second = (first - sum(used), -1) if second < 0 else (first - used[0], second - used[1])
            if length < unit.stop - unit.start:
                break
        return found

    def _fitting(self, tokens: np.ndarray, unit: Unit, draws: Draws, number: int, rooms: tuple[int, int]) -> int:
        """The longest beginning of a unit that fits, in tokens before it is parted; below 2 where none does."""
        length, (first, second) = unit.stop - unit.start, rooms
        while length >= 2:
            source, target = self.splitter.sizes(tokens[unit.start : unit.start + length], draws, number)
            source, target = source + (self.mode >= 0), target + self._closed(unit, length)
            over = source + target - first if second < 0 else max(source - first, target - second)
            if over <= 0:
                break
            length -= max(1, over // 3)  # a token less saves three at most, so this never goes too far
        return length

    def _closed(self, unit: Unit, length: int) -> bool:
        return self.splitter.closes or (unit.ended and length == unit.stop - unit.start)

    def _pair(
        self, tokens: np.ndarray, weights: np.ndarray, unit: Unit, length: int, draws: Draws, number: int
    ) -> Pair:
        """The pair of the first `length` tokens of a unit, with its mode and its end."""
        part = slice(unit.start, unit.start + length)
        found = self.splitter.split(tokens[part], weights[part], draws, number)
        given, asked, counted = found.given, found.asked, found.asked_weights
        if self.mode >= 0:
            given = np.concatenate([[self.mode], given])
        if self._closed(unit, length):
            whole = unit.ended and length == unit.stop - unit.start
            end = weights[unit.stop] if whole else counted[-1]
            asked, counted = np.append(asked, self.eod), np.append(counted, end)
        return Pair(given, asked, counted)

    def _lay_decoder(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws) -> tuple[np.ndarray, ...]:
        size = len(tokens)
        line, counted = np.full(size, self.eod), np.zeros(size, np.float32)
        prefix, documents = np.zeros(size, bool), np.zeros(size, np.int64)
        place = 0
        pairs = self._pairs(tokens, weights, draws, (size, -1))
        for number, pair in enumerate(pairs):
            middle = place + len(pair.given)
            stop = middle + len(pair.asked)
            line[place:middle], line[middle:stop] = pair.given, pair.asked
            prefix[place:middle] = True
            counted[middle:stop] = pair.asked_weights
            documents[place:] = number
            place = stop
        documents[place:] = len(pairs)
        return line[:-1], line[1:], counted[1:], documents[:-1], prefix[:-1]

    def _lay_both(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws) -> tuple[np.ndarray, ...]:
        """Encoder part: sources, padded by `eod` of document -1. Decoder part: an `eod` begins each target, and padding belongs
        to the last document, so that every row of cross-attention sees something."""
        size, cut = len(tokens) - 1, self.encoder
        inputs, targets = np.full(size, self.eod), np.full(size, self.eod)
        counted, documents = np.zeros(size, np.float32), np.full(size, -1, np.int64)
        source, place = 0, cut
        pairs = self._pairs(tokens, weights, draws, (cut, size - cut))
        for number, pair in enumerate(pairs):
            end, stop = source + len(pair.given), place + len(pair.asked)
            inputs[source:end], documents[source:end] = pair.given, number
            inputs[place + 1 : stop], targets[place:stop] = pair.asked[:-1], pair.asked
            counted[place:stop], documents[place:stop] = pair.asked_weights, number
            source, place = end, stop
        documents[place:] = len(pairs) - 1
        return inputs, targets, counted, documents, np.zeros(size, bool)
