"""How well a stream mixes its corpus, against perfect shuffles: figures of an order, and what chance would give.

An order is where in the corpus (0 … size - 1, in units as stored) the samples at positions 0, 1, … of a stream lie. Chance
is simulated: the same figures of as many uniformly drawn positions without repetition, some times over, by keyed hashes.
Where a closed form is known the tests hold the simulation to it: the correlation of a random permutation has mean 0 and
variance 1 / (n - 1), the mean distance of neighbours is (n + 1) / 3 (David and Barton 1962), and a batch of w of n samples
misses a group of g with probability C(n - g, w) / C(n, w).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from data.order import key, mix, permutation

Groups = Mapping[str, Callable[[np.ndarray], np.ndarray]]
"""What positions of the corpus belong to, by name (shard, source, document): int64 [n] -> ids int64 [n]."""


@dataclass(frozen=True)
class Figure:
    """A figure of an order, its mean over perfect shuffles, and its standard deviation over them."""

    value: float
    expected: float
    deviation: float

    @property
    def z(self) -> float:
        """How many standard deviations the order is from a perfect shuffle; beyond 4 it is none."""
        if self.deviation == 0:
            return 0.0 if self.value == self.expected else float(np.copysign(np.inf, self.value - self.expected))
        return (self.value - self.expected) / self.deviation


MEANINGS = {
    "correlation": "of position in the stream and in the corpus; 0 is mixed, 1 as stored",
    "distance": "mean distance of neighbours in the corpus, in lengths of the corpus; a third is mixed",
    "kept": "neighbours that are neighbours in the corpus too, of a thousand",
    "spread": "standard deviation of positions within a batch, in lengths of the corpus; 0.29 is all of it",
    "drift": "standard deviation of the mean position of batches, in lengths of the corpus",
}
"""What the figures mean; beside them `NAME a batch` for every kind of group: how many different ones a batch has."""


def measure(order: np.ndarray, size: int, batch: int, groups: Groups, rounds: int = 50) -> dict[str, Figure]:
    """Figures of an order, int64 [m], each position at most once, of a corpus of `size`; batches of `batch` samples."""
    assert len(order) >= 2 * batch, "a figure of one batch says nothing"
    found = _figures(order, size, batch, groups)
    chance = [_figures(drawn(size, len(order), key("chance", number)), size, batch, groups) for number in range(rounds)]
    return {
        name: Figure(
            value, float(np.mean([one[name] for one in chance])), float(np.std([one[name] for one in chance], ddof=1))
        )
        for name, value in found.items()
    }


def _figures(order: np.ndarray, size: int, batch: int, groups: Groups) -> dict[str, float]:
    steps = np.diff(order)
    whole = len(order) // batch * batch
    rows = order[:whole].reshape(-1, batch)
    found = {
        "correlation": _correlation(order),
        "distance": float(np.abs(steps).mean()) / size,
        "kept": 1000 * float((steps == 1).mean()),
        "spread": float(rows.std(1).mean()) / size,
        "drift": float(rows.mean(1).std()) / size,
    }
    for name, group in groups.items():
        ids = np.sort(group(order[:whole]).reshape(-1, batch), axis=1)
        found[f"{name} a batch"] = float(1 + (np.diff(ids, axis=1) != 0).sum(1).mean())
    return found


def _correlation(order: np.ndarray) -> float:
    ranks = np.argsort(np.argsort(order)) - (len(order) - 1) / 2
    places = np.arange(len(order)) - (len(order) - 1) / 2
    return float((ranks * places).sum() / (places * places).sum())


def drawn(size: int, count: int, seed: int) -> np.ndarray:
    """`count` different positions below `size` in a random order, int64 [count]."""
    if count * 8 > size:
        return permutation(size, seed)[:count]
    found = np.zeros(0, np.int64)
    tries = 0
    while len(found) < count:
        numbers = np.arange(tries, tries + count + count // 4, dtype=np.uint64)
        more = np.concatenate([found, (mix(numbers, seed) % np.uint64(size)).astype(np.int64)])
        found = more[np.sort(np.unique(more, return_index=True)[1])]
        tries += len(numbers)
    return found[:count]


def buffered(shards: np.ndarray, count: int, seed: int, buffer: int = 1000, initial: int = 100) -> np.ndarray:
    """The order that a pipeline of shuffled shards and a shuffle buffer gives, as webdataset's `shuffle(1000)` does.

    shards: int64 [shards], samples of each. Samples come shard by shard, shards in a random order; each time one of those
    in the buffer is given out, which is filled up to `buffer` and begins with `initial`. int64 [count].
    """
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(shards)])
    visit = permutation(len(shards), key("buffer", seed))
    read = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in visit])[: count + buffer].tolist()
    draws = mix(np.arange(count, dtype=np.uint64), key("draws", seed)).tolist()
    held, out, at = read[:initial], np.empty(count, np.int64), initial
    for place in range(count):
        chosen = draws[place] % len(held)
        held[chosen], held[-1] = held[-1], held[chosen]
        out[place] = held.pop()
        more = min(at + 1 + (len(held) + 1 < buffer), len(read))  # two for one until it is full
        held += read[at:more]
        at = more
    return out
