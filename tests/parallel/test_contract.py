"""Everything that we rely on in torch, megatron-core and DeepSpeed beyond their documentation, by name."""

from __future__ import annotations

import pytest

from tests.helpers.pool import Pools
from tests.parallel import contract


@pytest.mark.parametrize("name", contract.CHECKS, ids=str)
def test_relied_on(name: str, pools: Pools) -> None:
    pools.run(2, contract.run, name=name)
