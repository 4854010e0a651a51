"""The sizes of a phase's batches, as a function of how many tokens of the phase went before: ramps and plain batches.

A ramp has as many stages as its increments take, equally long in tokens (as in Megatron-LM's `--rampup-batch-size`).
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.config import Recipe, TrainConfig


@dataclass(frozen=True)
class Slot:
    """One batch. place: tokens of the phase before it; rows of `length` tokens."""

    place: int
    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


class Slots:
    """Batch sizes of a phase."""

    def __init__(self, train: TrainConfig) -> None:
        self._stages = stages(train)

    @property
    def sizes(self) -> list[int]:
        """Tokens of every batch size that occurs, ascending."""
        return [size for _, size in self._stages]

    def slot(self, place: int, length: int) -> Slot:
        """The batch that begins at this place of the phase, in rows of so many tokens."""
        tokens = [size for start, size in self._stages if start <= place][-1]
        return Slot(place, tokens // length, length)

    def steps(self, begin: int, end: int) -> int:
        """Batches from place `begin` until `end` is reached or passed."""
        steps, place = 0, begin
        ends = [start for start, _ in self._stages[1:]] + [end]
        for (_, size), stop in zip(self._stages, ends, strict=True):
            found = max(0, -(-(min(stop, end) - place) // size))
            steps, place = steps + found, place + found * size
        return steps

    def place_after(self, begin: int, steps: int) -> int:
        """The place after so many batches from `begin` on."""
        place = begin
        ends = [start for start, _ in self._stages[1:]]
        for (_, size), stop in zip(self._stages, [*ends, None], strict=True):
            found = steps if stop is None else min(steps, max(0, -(-(stop - place) // size)))
            steps, place = steps - found, place + found * size
        return place


def stages(train: TrainConfig) -> list[tuple[int, int]]:
    """(place where it begins, tokens of a batch) of each stage of a ramp; one stage without."""
    if not train.ramp_tokens:
        return [(0, train.batch_tokens)]
    increment = train.ramp_increment or train.ramp_from
    sizes = [*range(train.ramp_from, train.batch_tokens, increment), train.batch_tokens]
    return [(train.ramp_tokens * number // (len(sizes) - 1), size) for number, size in enumerate(sizes)]


def lengths_of(recipe: Recipe) -> tuple[int, ...]:
    """Sequence lengths that a phase's batches may have, ascending."""
    return recipe.data.buckets.lengths or (recipe.train.sequence_length,)
