"""The parts of a packed row: documents between their ends, and what is padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Unit:
    """Places [start, stop) of a row, without the `eod` after it; ended: whether there is one."""

    start: int
    stop: int
    ended: bool


def content_length(tokens: np.ndarray, weights: np.ndarray, eod: int) -> int:
    """Tokens [S + 1] of a row before its padding: `eod` of weight 0 that end nothing, up to the row's end."""
    padding = (tokens == eod) & (weights == 0)
    tail = len(tokens) - (0 if padding.all() else int(np.flatnonzero(~padding)[-1]) + 1)
    length = len(tokens) - tail
    # a document whose weight is 0 has its end among what looks like padding
    return length + 1 if tail and length and tokens[length - 1] != eod else length


def documents(tokens: np.ndarray, weights: np.ndarray, eod: int) -> list[Unit]:
    """Documents of a row, of which the last may go on beyond it; ends of nothing and padding are none."""
    length = content_length(tokens, weights, eod)
    found, start = [], 0
    for stop in [*np.flatnonzero(tokens[:length] == eod).tolist(), length]:
        if stop > start:
            found.append(Unit(start, stop, stop < length))
        start = stop + 1
    return found


def whole(tokens: np.ndarray, weights: np.ndarray, eod: int) -> list[Unit]:
    """All of a row before its padding as one unit; ends of documents within it are tokens like others."""
    length = content_length(tokens, weights, eod)
    if length == 0:
        return []
    ended = bool(tokens[length - 1] == eod)
    return [Unit(0, length - ended, ended)] if length > ended else []
