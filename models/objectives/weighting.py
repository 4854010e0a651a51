"""Weights from metadata: how much a document's tokens count, whatever the objective makes of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.errors import ModelError
from models.objectives.base import Example, Objective, Samples
from models.objectives.config import WeightConfig


class Weighted:
    """An objective whose samples come with weights by a column of their documents, times those they had."""

    def __init__(self, config: WeightConfig, inner: Objective) -> None:
        self.config, self.inner, self.marks_prefix = config, inner, inner.marks_prefix

    def __call__(self, samples: Samples) -> Example:
        """The inner objective's example of samples that are weighted."""
        columns, name = samples.columns, self.config.column
        if columns is None or name not in columns.values:
            raise ModelError(
                f"objective.weights.column={name}: the corpus has no such column; name one of its columns, or build it with it"
            )
        by_token = self.weights(columns.values[name])[columns.of]
        old = samples.token_weights()
        if self.config.by == "sample":
            there = old > 0
            total = (by_token * there).sum(1, keepdims=True) / np.maximum(there.sum(1, keepdims=True), 1)
            by_token = np.broadcast_to(total, old.shape)
        return self.inner(replace(samples, weights=(old * by_token)[:, 1:].astype(np.float32)))

    def weights(self, values: np.ndarray) -> np.ndarray:
        """float32 [D] of a column's values [D]."""
        config = self.config
        if config.table:
            table = {str(key): float(weight) for key, weight in config.table.items()}
            return np.array([table.get(str(value), config.default) for value in values], np.float32)
        numbers = np.array([np.nan if value is None else float(value) for value in values], np.float64)
        kept = np.clip(numbers, config.low, config.high)
        return np.where(np.isnan(numbers), config.default, kept).astype(np.float32)
