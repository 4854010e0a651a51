"""Made-up samples for the tests of objectives, and hypothesis strategies for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from models.objectives import Example, Objective, Samples, Vocabulary, build_objective
from models.objectives.config import ObjectiveConfig

EOD, ORDINARY, SIZE = 0, range(1, 40), 64
SPECIAL = {
    "<|mask|>": 40,
    "<|sep|>": 41,
    "<|end_of_span|>": 42,
    "<|fim_prefix|>": 43,
    "<|fim_middle|>": 44,
    "<|fim_suffix|>": 45,
    "<|mode_r|>": 46,
    "<|mode_s|>": 47,
    **{f"<|sentinel_{number}|>": 48 + number for number in range(16)},
}
SENTINELS = list(range(48, 64))
VOCABULARY = Vocabulary(SIZE, EOD, SPECIAL)


@dataclass(frozen=True)
class Made:
    """Samples, and the texts that their rows were packed from: (tokens, whether an end follows)."""

    samples: Samples
    texts: list[list[tuple[list[int], bool]]]


def pack(rows: list[list[int]], length: int, first: int = 0) -> Made:
    """Rows of texts of these lengths, cut at length + 1; what is left of a row is padding."""
    tokens = np.full((len(rows), length + 1), EOD, np.int64)
    weights = np.zeros((len(rows), length + 1), np.float32)
    texts: list[list[tuple[list[int], bool]]] = []
    for row, sizes in enumerate(rows):
        place, found = 0, []
        for number, size in enumerate(sizes):
            text = [1 + (7 * row + 5 * number + 3 * at + at * at) % 39 for at in range(size)][
                : max(0, length + 1 - place)
            ]
            if not text:
                break
            stop = place + len(text)
            tokens[row, place:stop] = text
            ended = stop <= length
            weights[row, place : min(stop + 1, length + 1)] = 1
            found.append((text, ended))
            place = stop + 1
        texts.append(found)
    return Made(Samples(tokens, first + np.arange(len(rows)), weights[:, 1:]), texts)


def rows(most: int = 4) -> st.SearchStrategy[list[list[int]]]:
    """Lengths of the texts of up to `most` rows."""
    return st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=most)


def built(config: ObjectiveConfig, seed: int = 3, encoder: int = 0) -> Objective:
    """An objective over the vocabulary of these tests."""
    return build_objective(config, VOCABULARY, seed, encoder)


def parts_of(example: Example) -> list[np.ndarray]:
    """All arrays of an example that are there."""
    found = (example.inputs, example.targets, example.weights, example.documents, example.prefix)
    return [part for part in found if part is not None]
