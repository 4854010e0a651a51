"""From a stream to this data rank's batches: pure functions of counters, prepared ahead in the background."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from data.columns import ColumnReader
from data.prefetch import Prefetcher
from data.stream import Rows, Stream, TokenStream, hash_of
from data.tokenizers import load_corpus_tokenizer
from launcher.config import Recipe
from launcher.reading import Reading
from launcher.slots import Slot, Slots
from launcher.vocabulary import vocabulary_of
from models.objectives import Columns, Example, Objective, Samples, build_objective
from parallel.engines.base import Batch
from parallel.mesh import Mesh


@dataclass(frozen=True)
class Counters:
    """All of a run's position: what happened so far. tokens and samples count over every phase; phase_tokens is the place
    in the current phase's stream."""

    step: int = 0
    tokens: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    phase: int = 0
    phase_tokens: int = 0


@dataclass(frozen=True)
class Fetched:
    """A batch on its way to the engine. hash: of the whole global batch; drawn: its tokens by source; both on rank 0."""

    batch: Batch
    slot: Slot
    hash: str = ""
    drawn: dict[str, int] = field(default_factory=dict)


class TrainBatches:
    """The training batches of a phase, from where the counters stand."""

    def __init__(self, recipe: Recipe, mesh: Mesh, reading: Reading, counters: Counters, steps: int) -> None:
        self.recipe, self.mesh, self.reading, self.stream = recipe, mesh, reading, reading.stream
        self._slots = Slots(recipe.train)
        self._known = [(counters.phase_tokens, counters.samples)]  # place and first sample of each step
        self._sampler = Sampler(recipe, self.stream, counters.tokens - counters.phase_tokens)
        self._prefetcher = Prefetcher(self._make, depth=recipe.data.prefetch, stop=steps)

    def get(self, index: int) -> Fetched:
        """Batch `index` of this phase's continuation."""
        return self._prefetcher.get(index)

    def close(self) -> None:
        """End the background thread."""
        self._prefetcher.close()

    def _slot(self, index: int) -> tuple[Slot, int]:
        """(batch `index`, global index of its first row)."""
        while True:
            place, sample = self._known[min(index, len(self._known) - 1)]
            length = self.stream.length_at(place, self.recipe.train.sequence_length)
            slot = self._slots.slot(place, length)
            if index < len(self._known):
                return slot, sample
            self._known.append((place + slot.tokens, sample + slot.rows))

    def _make(self, index: int) -> Fetched:
        slot, sample = self._slot(index)
        rows = slot.rows // self.mesh.config.data
        skip = self.mesh.place.data * rows
        places = slot.place + np.arange(slot.rows, dtype=np.int64) * slot.length
        if self.mesh.rank:
            own = self.stream.rows(places[skip : skip + rows], slot.length)
            return Fetched(self._batch(own, places[skip : skip + rows], sample + skip), slot)
        whole = self.stream.rows(places, slot.length)  # rank 0 alone reads all of it, for its hash
        own = Rows(*(part[skip : skip + rows] for part in (whole.tokens, whole.weights, whole.sources)))
        batch = self._batch(own, places[skip : skip + rows], sample + skip)
        counts = Counter(whole.sources.tolist()) if len(self.reading.names) > 1 else {}
        drawn = {self.reading.names[source]: count * slot.length for source, count in sorted(counts.items())}
        return Fetched(batch, slot, hash_of(whole.tokens), drawn)

    def _batch(self, rows: Rows, places: np.ndarray, first_sample: int) -> Batch:
        return batch_of(self._sampler(rows, places, first_sample), first_sample)


class Sampler:
    """Rows of a stream as the objective of a phase makes examples of them. before: tokens of the run's earlier phases."""

    def __init__(self, recipe: Recipe, stream: TokenStream, before: int = 0) -> None:
        self._objective, self._before = objective_of(recipe), before
        column = recipe.objective.weights.column
        self._columns = ColumnReader(stream, column) if column else None
        self._column = column

    def __call__(self, rows: Rows, places: np.ndarray, first_sample: int) -> Example:
        """The example of rows at these places of the phase, the first of which is the run's sample `first_sample`."""
        length = rows.tokens.shape[1] - 1
        columns = None
        if self._columns is not None:
            of, values = self._columns(places, length)
            columns = Columns(of, {self._column: values})
        indices = first_sample + np.arange(len(places))
        return self._objective(Samples(rows.tokens, indices, rows.weights, columns, self._before + places))


def objective_of(recipe: Recipe) -> Objective:
    """The objective of a phase, told of its corpus's tokenizer."""
    vocabulary = vocabulary_of(
        recipe.objective, load_corpus_tokenizer(recipe.data.home, recipe.data.cache), recipe.data.home
    )
    return build_objective(recipe.objective, vocabulary, recipe.seed, recipe.model.encoder_length)


def batch_of(example: Example, first_sample: int) -> Batch:
    """An example as the engines take it."""
    inputs, targets, weights = map(torch.from_numpy, (example.inputs, example.targets, example.weights))
    documents, prefix = (
        None if part is None else torch.from_numpy(part) for part in (example.documents, example.prefix)
    )
    return Batch(inputs, targets, weights, first_sample, documents, prefix)


def ordered_batch(sampler: Sampler, stream: Stream, first: int, rows: int, length: int) -> Batch:
    """Sequences [first, first + rows) of a stream in plain order."""
    places = (first + np.arange(rows, dtype=np.int64)) * length
    return batch_of(sampler(stream.rows(places, length), places, first), first)


def validation_batches(recipe: Recipe, mesh: Mesh, stream: Stream) -> Iterator[Batch]:
    """The first tokens of a validation split in plain order, the same sequences at every layout.

    Rows beyond the last sequence, needed to give every data rank whole micro-batches, have weight 0.
    """
    train, sampler, source = recipe.train, Sampler(recipe, stream), stream.sources[0]
    length = train.sequence_length
    sequences = min(-(-(train.validation_tokens or source.tokens) // length), source.units)
    share = train.micro_batch * mesh.config.data
    for start in range(0, sequences, share):
        first = start + mesh.place.data * train.micro_batch
        batch = ordered_batch(sampler, stream, first, train.micro_batch, length)
        batch.weights[max(0, sequences - first) :] = 0
        yield batch
