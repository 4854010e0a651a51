"""What objectives draw for their samples: keyed by (seed, name, sample), never by where a sample lies in a batch."""

from __future__ import annotations

import numpy as np

from models.keys import bits_at, signed, stream_key, uniform


class Draws:
    """Random numbers of one sample, each of its own stream: `name` says what for, `number` which unit of the sample."""

    def __init__(self, keys: dict[str, int], sample: int) -> None:
        self._keys, self._sample = keys, sample

    def key(self, name: str, number: int = 0) -> int:
        """The key of a stream: stream `number` of the sample's, which is one of those of the name."""
        return signed(bits_at(bits_at(self._keys[name], self._sample), number))

    def uniform(self, name: str, number: int = 0) -> float:
        """A number in (0, 1)."""
        return ((bits_at(self.key(name, number), 0) >> 12) + 0.5) * 2.0**-52

    def uniforms(self, name: str, count: int, number: int = 0) -> np.ndarray:
        """Numbers in (0, 1), float64 [count]."""
        return self.at(name, np.arange(count), number)

    def at(self, name: str, places: np.ndarray, number: int = 0) -> np.ndarray:
        """Those of `uniforms` at some places."""
        return uniform(self.key(name, number), places)

    def integer(self, name: str, stop: int, number: int = 0) -> int:
        """A whole number from 0 up to but without `stop`, each as likely."""
        return min(int(self.uniform(name, number) * stop), stop - 1)

    def chosen(self, name: str, count: int, total: int, number: int = 0) -> np.ndarray:
        """`count` different ones of range(total), ascending, each set of them as likely: those of the smallest numbers."""
        drawn = self.uniforms(name, total, number)
        return np.sort(np.argsort(drawn, kind="stable")[:count])


def stream_keys(seed: int, place: str, names: tuple[str, ...]) -> dict[str, int]:
    """A key for each name. place: which part of a mixture draws."""
    return {name: stream_key(seed, "objective", place, name) for name in names}
