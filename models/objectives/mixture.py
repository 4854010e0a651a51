"""Several objectives in one run: each sample is given to one of them, by its index alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.keys import stream_key, uniform
from models.objectives.base import Example, Objective, Samples, document_numbers


class Mixture:
    """A choice among objectives for each sample. shares: in what proportion."""

    def __init__(self, objectives: Sequence[Objective], shares: Sequence[float], seed: int, eod: int) -> None:
        self.objectives, self.eod = list(objectives), eod
        self._bounds = np.cumsum(shares) / np.sum(shares)
        self._key = stream_key(seed, "objective", "choice")
        self.marks_prefix = any(objective.marks_prefix for objective in objectives)

    def choice(self, indices: np.ndarray) -> np.ndarray:
        """int64 [R]: which objective has each sample."""
        found = np.searchsorted(self._bounds, uniform(self._key, indices), side="right")
        return np.minimum(found, len(self.objectives) - 1)

    def __call__(self, samples: Samples) -> Example:
        """Row for row, always with documents, and with prefixes if any part marks them."""
        shape = (samples.tokens.shape[0], samples.tokens.shape[1] - 1)
        inputs, targets, documents = (np.empty(shape, np.int64) for _ in range(3))
        weights, prefix = np.empty(shape, np.float32), np.zeros(shape, bool)
        choice = self.choice(samples.indices)
        for number in np.unique(choice):
            rows = np.flatnonzero(choice == number)
            found = self.objectives[number](samples.rows(rows))
            inputs[rows], targets[rows], weights[rows] = found.inputs, found.targets, found.weights
            apart = found.documents
            documents[rows] = document_numbers(found.inputs, self.eod) if apart is None else apart
            if found.prefix is not None:
                prefix[rows] = found.prefix
        return Example(inputs, targets, weights, documents, prefix if self.marks_prefix else None)
