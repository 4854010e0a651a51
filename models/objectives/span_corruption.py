"""Span corruption (T5, arXiv 1910.10683, section 3.1.4): spans are taken out of a text and told after it.

Given: the text with a sentinel of its own for each span. Asked for: each sentinel with its span. How many tokens and spans are
taken out is exact, which ones is drawn: kept and taken runs are each a uniformly drawn composition, and take turns, kept first.
CodeGen2 (arXiv 2305.02309) draws the rate of each text, and puts a separator between the halves and an end after each span.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from models.objectives.config import SpanConfig
from models.objectives.draw import Draws
from models.objectives.pairs import Pair


class SpanSplit:
    """What is taken out. sentinels: int64 ids; separator, end: ids, or -1 for none."""

    draws: ClassVar[tuple[str, ...]] = ("rate", "kept", "taken")
    closes: ClassVar[bool] = True

    def __init__(self, config: SpanConfig, sentinels: np.ndarray, separator: int, end: int) -> None:
        self.config, self.sentinels, self.separator, self.end = config, sentinels, separator, end

    def counts(self, length: int, draws: Draws, number: int) -> tuple[int, int]:
        """(tokens taken out, spans) of a text of `length` >= 2: at least one, and one is kept before each span."""
        config, rate = self.config, self.config.rate
        if config.final_rate:
            rate += (config.final_rate - rate) * draws.uniform("rate", number)
        taken = min(max(round(length * rate), 1), length - 1)
        spans = max(round(taken / config.mean_length), 1)
        return taken, min(spans, taken, length - taken, len(self.sentinels))

    def sizes(self, tokens: np.ndarray, draws: Draws, number: int) -> tuple[int, int]:
        length = len(tokens)
        taken, spans = self.counts(length, draws, number)
        return length - taken + spans + (self.separator >= 0), taken + spans * (1 + (self.end >= 0))

    def split(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, number: int) -> Pair:
        taken, spans = self.counts(len(tokens), draws, number)
        kept = _runs(len(tokens) - taken, spans, draws, "kept", number)
        gone = _runs(taken, spans, draws, "taken", number)
        out = np.repeat(np.tile([False, True], spans), np.stack((kept, gone), axis=1).ravel())
        sentinels, ends = self.sentinels[:spans], np.cumsum(gone)
        given = np.insert(tokens[~out], np.cumsum(kept), sentinels)
        if self.separator >= 0:
            given = np.append(given, self.separator)
        # what stands before and after each span; where one ends and the next begins, in this order
        places, marks, beside = ends - gone, sentinels, ends - gone
        if self.end >= 0:
            places = np.stack((places, ends), axis=1).ravel()
            marks = np.stack((marks, np.full(spans, self.end)), axis=1).ravel()
            beside = np.stack((beside, ends - 1), axis=1).ravel()
        counted = weights[out]
        return Pair(given, np.insert(tokens[out], places, marks), np.insert(counted, places, counted[beside]))


def _runs(total: int, count: int, draws: Draws, name: str, number: int) -> np.ndarray:
    """int64 [count]: lengths of at least 1 that add up to `total`, each such list as likely."""
    cuts = draws.chosen(name, count - 1, total - 1, number) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))
