"""What every loader of `bench data` does alike: rows to batches that a model takes, and documents to rows.

Imports nothing of Triaxis: peers run in an interpreter of their own, beside other versions of packages.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

ROWS = 8
LENGTH = 4096
TOKENS = ROWS * LENGTH  # to be predicted in a batch

Batch = tuple[torch.Tensor, torch.Tensor]
"""Inputs and targets, int64 [ROWS, LENGTH] each, of memory of their own."""


def halves(samples: np.ndarray) -> Batch:
    """Inputs and targets of int64 samples [ROWS, LENGTH + 1]."""
    return torch.from_numpy(samples[:, :-1].copy()), torch.from_numpy(samples[:, 1:].copy())


def batched(rows: Iterable[np.ndarray]) -> Iterator[Batch]:
    """Batches of rows, integers [LENGTH + 1] each."""
    samples, filled = np.empty((ROWS, LENGTH + 1), np.int64), 0
    for row in rows:
        samples[filled] = row
        filled += 1
        if filled == ROWS:
            yield halves(samples)
            samples, filled = np.empty((ROWS, LENGTH + 1), np.int64), 0


def packed(documents: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows [LENGTH + 1] of documents one after another: concatenate and cut."""
    row, filled = np.empty(LENGTH + 1, np.int64), 0
    for document in documents:
        at = 0
        while at < len(document):
            take = min(len(document) - at, LENGTH + 1 - filled)
            row[filled : filled + take] = document[at : at + take]
            at, filled = at + take, filled + take
            if filled == LENGTH + 1:
                yield row
                row, filled = np.empty(LENGTH + 1, np.int64), 0


def check(batch: Batch) -> None:
    """That a batch is what it says."""
    for half in batch:
        assert half.shape == (ROWS, LENGTH) and half.dtype == torch.int64 and half.is_contiguous(), (
            half.shape,
            half.dtype,
        )
    assert torch.equal(batch[0][:, 1:], batch[1][:, :-1])
