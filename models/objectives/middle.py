"""Fill in the middle (arXiv 2207.14255): a document is told as prefix, suffix, middle, each behind its marker.

prefix-suffix-middle: <prefix> p <suffix> s <middle> m; suffix-prefix-middle, the paper's second variant, which shares its
markers: <prefix> <suffix> s <middle> p m. A document keeps its place and length in the row: the markers' room is taken from its
end before it is cut (between characters, what encoding anew adds is taken from its suffix; what it saves is padded). So borders
of documents, and whatever was packed for them, stay as they are. Markers are not predicted: where they stand was drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.objectives import units
from models.objectives.base import Example, Samples, Vocabulary
from models.objectives.config import MiddleConfig
from models.objectives.draw import Draws, stream_keys

MARKERS = 3


class Markers(NamedTuple):
    """Ids of what stands before each part."""

    prefix: int
    middle: int
    suffix: int


class FillInTheMiddle:
    """Documents, of which some are rearranged; every next token is predicted."""

    marks_prefix = False

    def __init__(self, config: MiddleConfig, seed: int, place: str, vocabulary: Vocabulary, markers: Markers) -> None:
        self.config, self.vocabulary, self.markers = config, vocabulary, markers
        self._keys = stream_keys(seed, place, ("change", "order", "cuts"))

    def __call__(self, samples: Samples) -> Example:
        """Row for row."""
        tokens, weights = samples.tokens.copy(), samples.token_weights().copy()
        for row in range(len(tokens)):
            draws = Draws(self._keys, int(samples.indices[row]))
            for number, unit in enumerate(units.documents(tokens[row], weights[row], self.vocabulary.eod)):
                if draws.uniform("change", number) < self.config.rate:
                    self._rearrange(tokens[row], weights[row], unit, draws, number)
        return Example(tokens[:, :-1], tokens[:, 1:], weights[:, 1:])

    def _rearrange(self, tokens: np.ndarray, weights: np.ndarray, unit: units.Unit, draws: Draws, number: int) -> None:
        """Write a document anew in its place; one too short, or whose text is not wholly there, stays."""
        room = unit.stop - unit.start
        if room <= MARKERS:
            return
        place = slice(unit.start, unit.stop)
        cut = self._cut_tokens if self.config.level == "token" else self._cut_text
        parts = cut(tokens[place][: room - MARKERS], weights[place], draws, number)
        if parts is None:
            return
        (prefix, middle, suffix), (before, between, after) = parts
        over = len(prefix) + len(middle) + len(suffix) + MARKERS - room
        if over > len(suffix):
            return
        if over > 0:
            suffix, after = suffix[:-over], after[:-over]
        mark, nothing = self.markers, np.zeros(1, np.float32)
        if draws.uniform("order", number) < self.config.spm_rate:
            line = [[mark.prefix], [mark.suffix], suffix, [mark.middle], prefix, middle]
            counted = [nothing, nothing, after, nothing, before, between]
        else:
            line = [[mark.prefix], prefix, [mark.suffix], suffix, [mark.middle], middle]
            counted = [nothing, before, nothing, after, nothing, between]
        self._write(tokens, weights, unit, np.concatenate(line), np.concatenate(counted))

    def _write(
        self, tokens: np.ndarray, weights: np.ndarray, unit: units.Unit, line: np.ndarray, counted: np.ndarray
    ) -> None:
        stop = unit.start + len(line)
        end = weights[unit.stop] if unit.ended else np.float32(0)
        tokens[unit.start : stop], weights[unit.start : stop] = line, counted
        tokens[stop : unit.stop], weights[stop : unit.stop] = self.vocabulary.eod, 0
        if stop < unit.stop:  # its end comes earlier, and what was its end is padding
            weights[stop] = end
            if unit.ended:
                weights[unit.stop] = 0

    def _cut_tokens(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, number: int):  # type: ignore[no-untyped-def]
        first, second = _cuts(len(tokens), draws, number)
        return np.split(tokens, [first, second]), np.split(weights[: len(tokens)], [first, second])

    def _cut_text(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, number: int):  # type: ignore[no-untyped-def]
        """Parts encoded by themselves, all with the weight of the document's first token."""
        vocabulary = self.vocabulary
        assert vocabulary.encode is not None and vocabulary.decode is not None
        text = vocabulary.decode(tokens)
        if "\ufffd" in text:  # half a character at the row's edge: another text would be encoded
            return None
        first, second = _cuts(len(text), draws, number)
        parts = [vocabulary.encode(part) for part in (text[:first], text[first:second], text[second:])]
        return parts, [np.full(len(part), weights[0], np.float32) for part in parts]


def _cuts(length: int, draws: Draws, number: int) -> tuple[int, int]:
    """Two places from 0 to `length`, each as likely, in ascending order."""
    first, second = (draws.integer("cuts", length + 1, 2 * number + side) for side in (0, 1))
    return min(first, second), max(first, second)
