"""PolyNorm, whose means go over features that the tensor axis cuts, trains there as in one process."""

from __future__ import annotations

import pytest

from tests.helpers.pool import Pools
from tests.parallel.cases import ADAMW, SGD, Case
from tests.parallel.test_parity import (
    Reference,
    assert_matches_single_process,
    case,
    reference,  # noqa: F401 (a fixture)
)

LAYOUTS = [
    case("powers", SGD, 2, 1, 1, zero_stage=1, sequence_parallel=True, recompute="selective"),
    case("powers", ADAMW, 2, 1, 1, engine="torch"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_powers_match_one_process(layout: Case, pools: Pools, reference: Reference) -> None:  # noqa: F811
    assert_matches_single_process(layout, pools, reference)
