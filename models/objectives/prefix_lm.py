"""Prefix LM: the beginning of a text is given, the rest asked for (arXiv 1910.10683, section 3.2.1)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from models.objectives.config import PrefixConfig
from models.objectives.draw import Draws
from models.objectives.pairs import Pair


class PrefixSplit:
    """Where a prefix ends. separator: id of the token that ends it with split=separator."""

    draws: ClassVar[tuple[str, ...]] = ("split",)
    closes: ClassVar[bool] = False

    def __init__(self, config: PrefixConfig, separator: int) -> None:
        self.config, self.separator = config, separator

    def sizes(self, tokens: np.ndarray, draws: Draws, number: int) -> tuple[int, int]:
        place = self._place(tokens, draws, number)
        return place, len(tokens) - place

    def split(self, tokens: np.ndarray, weights: np.ndarray, draws: Draws, number: int) -> Pair:
        place = self._place(tokens, draws, number)
        return Pair(tokens[:place], tokens[place:], weights[place:])

    def _place(self, tokens: np.ndarray, draws: Draws, number: int) -> int:
        """From 1 to length - 1, so that something is given and something asked for; 0 where there is no separator."""
        length = len(tokens)
        if self.config.split == "separator":
            found = np.flatnonzero(tokens[:-1] == self.separator)
            return int(found[0]) + 1 if len(found) else 0
        if self.config.split == "fraction":
            return min(max(round(length * self.config.fraction), 1), length - 1)
        return 1 + draws.integer("split", length - 1, number)
