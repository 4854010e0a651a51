"""From a stream to this data rank's batches: pure functions of counters, prepared ahead in the background."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from data.stream import Prefetcher, Stream, hash_of
from launcher.config import Recipe
from models.objectives import OBJECTIVES
from parallel.engines.base import Batch
from parallel.mesh import Mesh


@dataclass(frozen=True)
class Counters:
    """All of a run's position: what happened so far. tokens and samples count over every phase."""

    step: int = 0
    tokens: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    phase: int = 0
    phase_tokens: int = 0
    stream_tokens: int = 0  # consumed of the current phase's stream


class TrainBatches:
    """The training batches of a phase: step i begins at stream token start + i x batch_tokens."""

    def __init__(self, recipe: Recipe, mesh: Mesh, stream: Stream, counters: Counters, steps: int) -> None:
        self.recipe, self.mesh, self.stream, self.start = recipe, mesh, stream, counters
        self.objective = OBJECTIVES[recipe.objective.name]
        self._prefetcher = Prefetcher(self._make, depth=recipe.data.prefetch, stop=steps)

    def get(self, index: int) -> tuple[Batch, str]:
        """Batch `index` of this phase's continuation, and on rank 0 the hash of the whole global batch."""
        return self._prefetcher.get(index)

    def close(self) -> None:
        """End the background thread."""
        self._prefetcher.close()

    def _make(self, index: int) -> tuple[Batch, str]:
        train = self.recipe.train
        first = self.start.stream_tokens + index * train.batch_tokens
        rows = train.batch_sequences // self.mesh.config.data
        skip = self.mesh.place.data * rows
        sample = self.start.samples + index * train.batch_sequences + skip
        if self.mesh.rank == 0:  # the only rank that reads the whole batch, for its hash
            whole = self.stream.batch(first, train.batch_sequences, train.sequence_length)
            return self._batch(whole[skip : skip + rows], sample), hash_of(whole)
        own = self.stream.batch(first + skip * train.sequence_length, rows, train.sequence_length)
        return self._batch(own, sample), ""

    def _batch(self, samples: np.ndarray, first_sample: int) -> Batch:
        inputs, targets, weights = self.objective(torch.from_numpy(samples))
        return Batch(inputs, targets, weights, first_sample)


def validation_batches(recipe: Recipe, mesh: Mesh, stream: Stream) -> Iterator[Batch]:
    """The first tokens of the validation split in plain order, the same sequences at every layout.

    Rows beyond the last sequence, needed to give every data rank whole micro-batches, have weight 0.
    """
    train, objective = recipe.train, OBJECTIVES[recipe.objective.name]
    length = train.sequence_length
    tokens = min(train.validation_tokens or stream.tokens_per_epoch, stream.tokens_per_epoch)
    sequences = max(1, tokens // length)
    share = train.micro_batch * mesh.config.data
    for start in range(0, sequences, share):
        first = start + mesh.place.data * train.micro_batch
        inputs, targets, weights = objective(torch.from_numpy(stream.batch(first * length, train.micro_batch, length)))
        weights = weights.clone()
        weights[max(0, sequences - first) :] = 0
        yield Batch(inputs, targets, weights, first)
