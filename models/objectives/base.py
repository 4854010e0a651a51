"""The Objective seam: what goes in of a stream, and what a model sees and must predict of it.

An objective is a pure function of its samples: whatever it draws is keyed by (seed, global index of the sample), so it is the
same at every layout, in every batch and after a resume. numpy only, since it runs beside the stream, not beside the model.

Shapes: R samples, S sequence, D documents of these samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Columns:
    """Metadata of the documents that samples are made of. of: int64 [R, S + 1], which entry of each column in `values`
    ([D] each) belongs to a token; padding may point anywhere."""

    of: np.ndarray
    values: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Packed samples: every document ends with the vocabulary's `eod`, padding is `eod` with weight 0.

    tokens: int64 [R, S + 1]; indices: int64 [R], global index of each sample in the run; weights: float32 [R, S], how much
    token s + 1 counts, or None where all count alike; position: int64 [R], tokens of the run before each sample, for schedules,
    or None for indices x S.
    """

    tokens: np.ndarray
    indices: np.ndarray
    weights: np.ndarray | None = None
    columns: Columns | None = None
    position: np.ndarray | None = None

    def rows(self, which: np.ndarray) -> Samples:
        """Some of the samples. which: int64 [n] or bool [R]."""
        columns = None if self.columns is None else replace(self.columns, of=self.columns.of[which])
        weights, position = (None if part is None else part[which] for part in (self.weights, self.position))
        return Samples(self.tokens[which], self.indices[which], weights, columns, position)

    def token_weights(self) -> np.ndarray:
        """float32 [R, S + 1]: weights by token; the first, which nothing predicts, is given the second's."""
        if self.weights is None:
            return np.ones(self.tokens.shape, np.float32)
        return np.concatenate([self.weights[:, :1], self.weights], axis=1)

    def positions(self) -> np.ndarray:
        """int64 [R]: tokens of the run before each sample."""
        return self.indices * (self.tokens.shape[1] - 1) if self.position is None else self.position


@dataclass(frozen=True)
class Example:
    """What model and loss see. inputs, targets: int64 [R, S]; weights: float32 [R, S], how much each target counts.

    documents: int64 [R, S], which document a token belongs to, or None where it is what stands between two `eod`; prefix: bool
    [R, S], tokens that all of their document sees, also from before them, or None for no such token. Row q of attention sees
    column k if they are of one document and (attention is not causal, or k <= q, or prefix[k]).
    """

    inputs: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    documents: np.ndarray | None = None
    prefix: np.ndarray | None = None


@dataclass(frozen=True)
class Vocabulary:
    """What an objective must know of a tokenizer. size: ids, from 0; eod: the one that ends documents; special: name of a
    special token -> id, which no text gives; joins: bool [2, V], whether an id's text begins (row 0) and ends (row 1) inside a
    word, for whole words; encode, decode: for what cuts text between characters."""

    size: int
    eod: int
    special: Mapping[str, int] = field(default_factory=dict)
    joins: np.ndarray | None = None
    encode: Callable[[str], np.ndarray] | None = None
    decode: Callable[[np.ndarray], str] | None = None

    def ordinary(self) -> np.ndarray:
        """int64: all ids that text can give."""
        return np.setdiff1d(np.arange(self.size), [self.eod, *self.special.values()])


class Objective(Protocol):
    """samples -> Example. marks_prefix: whether its examples have a prefix."""

    marks_prefix: bool

    def __call__(self, samples: Samples) -> Example:
        """The example of these samples, row for row."""


def document_numbers(tokens: np.ndarray, eod: int) -> np.ndarray:
    """int64 [R, n]: how many documents of its row ended before each token [R, n]; an end belongs to what it ends."""
    ends = (tokens == eod).astype(np.int64)
    return ends.cumsum(1) - ends
