"""The expert axis as a mixture layer sees it: which experts are here, and the way of tokens to the others and back."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Sent(Protocol):
    """Tokens on their way."""

    def arrived(self) -> tuple[Tensor, Tensor]:
        """Rows [N', H] for the experts of this rank, sorted by expert, and int64 counts of each; waits for them."""

    def back(self, results: Tensor) -> Tensor:
        """Results [N', H] of those rows -> [N, H] in the order in which they were sent."""


class ExpertAxis(Protocol):
    """Processes that share the experts of a layer."""

    degree: int
    rank: int

    def share(self, experts: int) -> int:
        """How many of `experts` are on this rank; they are consecutive."""

    def send(self, rows: Tensor, counts: Tensor) -> Sent:
        """Send rows [N, H], sorted by expert, with int64 counts of every expert, to where the experts are."""


class LocalExperts:
    """All experts are here."""

    degree, rank = 1, 0

    def share(self, experts: int) -> int:
        return experts

    def send(self, rows: Tensor, counts: Tensor) -> Sent:
        return _Stayed(rows, counts)


class _Stayed:
    def __init__(self, rows: Tensor, counts: Tensor) -> None:
        self._rows, self._counts = rows, counts

    def arrived(self) -> tuple[Tensor, Tensor]:
        return self._rows, self._counts

    def back(self, results: Tensor) -> Tensor:
        return results
