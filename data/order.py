"""Order as a function: pseudo-random permutations that follow from a key alone and are never stored.

Nothing here uses numpy's random generators, whose streams may change between releases: an order must outlive them.
"""

from __future__ import annotations

import hashlib

import numpy as np

ORDER_VERSION = 1
"""Raised with any change here or in `data.stream` that changes a sequence; part of a stream's fingerprint."""

_ROUNDS = 6


def key(*parts: object) -> int:
    """A 64-bit key from any parts, e.g. `key("blocks", seed, epoch)`; different parts give unrelated keys."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: np.ndarray, seed: int) -> np.ndarray:
    """A keyed 64-bit hash of uint64 values, elementwise (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = values * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(size: int, seed: int) -> np.ndarray:
    """A whole permutation of range(size), int64: a sort by keyed hashes, fair at any size, in O(size) memory."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64), seed), kind="stable")


class Bijection:
    """A permutation of range(size) evaluated at single points, in O(1) memory, for any size.

    A Feistel network on the smallest even number of bits that holds `size`; a value that falls outside the range walks
    on along its cycle until it is inside (fewer than four steps on average), which keeps the map one-to-one.
    """

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._half) - 1)
        self._keys = [key("feistel", seed, round_) for round_ in range(_ROUNDS)]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Images of int64 positions in [0, size), int64 of the same shape."""
        values = self._network(np.asarray(positions).astype(np.uint64))
        outside = values >= self.size
        while outside.any():
            values[outside] = self._network(values[outside])
            outside = values >= self.size
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        half = np.uint64(self._half)
        left, right = values >> half, values & self._mask
        for seed in self._keys:
            left, right = right, left ^ (mix(right, seed) & self._mask)
        return (left << half) | right
