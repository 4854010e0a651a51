"""What enters and leaves the regions where the tensor axis cuts a layer."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.pool import Pools
from tests.parallel import region_jobs


@pytest.mark.parametrize("turned", [False, True])
def test_a_share_keeps_no_more_than_itself(turned: bool, pools: Pools) -> None:
    """turned: rows that do not lie side by side, as those of embeddings do."""
    whole, upstream = (torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    given = whole.transpose(0, 1).contiguous().transpose(0, 1) if turned else whole
    for rank, (share, size, gradient) in enumerate(
        pools.run(2, region_jobs.kept_share, whole=given, upstream=upstream)
    ):
        assert torch.equal(share, whole.chunk(2)[rank])
        assert size == share.nbytes
        assert torch.equal(gradient, upstream)
