"""Keys of random streams, and their numbers in numpy: the twin of `models.random` for what runs without torch.

Both give the same bits for the same key and offset; a test compares them.
"""

from __future__ import annotations

import hashlib

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB


def signed(value: int) -> int:
    """The int64 with the same bits as a uint64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def stream_key(seed: int, *names: str | int) -> int:
    """64-bit key of the stream that belongs to a seed and a path of names."""
    text = "/".join(str(name) for name in (seed, *names)).encode()
    return signed(int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little"))


def bits(key: int | np.ndarray, index: np.ndarray) -> np.ndarray:
    """64 random bits, uint64, for each offset in `index` of the streams `key` (both broadcast)."""
    keys = np.asarray(key, np.int64).astype(np.uint64)
    x = (np.asarray(index).astype(np.uint64) + np.uint64(1)) * np.uint64(GAMMA) + keys
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX2)
    return x ^ (x >> np.uint64(31))


def bits_at(key: int, index: int) -> int:
    """The same of one offset, without numpy: many times as fast for a single number."""
    mask = (1 << 64) - 1
    x = ((index + 1) * GAMMA + key) & mask
    x = ((x ^ (x >> 30)) * MIX1) & mask
    x = ((x ^ (x >> 27)) * MIX2) & mask
    return x ^ (x >> 31)


def uniform(key: int | np.ndarray, index: np.ndarray) -> np.ndarray:
    """Uniform float64 in (0, 1), 52 random bits, for each offset."""
    return ((bits(key, index) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
