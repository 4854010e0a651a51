"""Losses over a vocabulary that is cut are those of one that is whole, and the same bits on each rank."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.pool import Pools
from tests.parallel import vocabulary_jobs


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("kind", ["reference", "triton"])
@pytest.mark.parametrize("terms", [{}, {"z_loss": 0.02, "label_smoothing": 0.1}], ids=str)
def test_two_ranks_are_one(terms: dict, kind: str, told: bool, pools: Pools) -> None:
    for dtype in (torch.float32, torch.float64):
        (whole,) = pools.run(
            1, vocabulary_jobs.losses, kind="reference", terms=terms, told=False, dtype=dtype, degree=1
        )
        ranks = pools.run(2, vocabulary_jobs.losses, kind=kind, terms=terms, told=told, dtype=dtype, degree=2)
        for rank in ranks:
            for ours, theirs, first in zip(rank, whole, ranks[0], strict=True):
                torch.testing.assert_close(ours, theirs)
                assert torch.equal(ours[0], first[0])
