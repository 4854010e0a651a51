"""bf16 and fp16: every layout in bf16 against one process of plain PyTorch in bf16; fp16's dynamic loss scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import ADAMW, DIALECTS, SGD, Case

Reference = Callable[[Case], jobs.Curve]


@pytest.fixture(scope="module")
def reference(pools: Pools) -> Reference:
    known: dict[Case, jobs.Curve] = {}

    def of(case: Case) -> jobs.Curve:
        # the same micro-batches: in bf16 each is rounded by itself, in any number of them
        key = replace(case.reference, parallel=ParallelConfig("torch"))
        if key not in known:
            known[key] = pools.run(1, jobs.train, case=key)[0]
        return known[key]

    return of
