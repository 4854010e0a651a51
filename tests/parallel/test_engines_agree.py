"""The two pipelines, torch's and DeepSpeed's, give every parameter the same gradient at the same layout, in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parallel.config import ParallelConfig
from tests.helpers.pool import Pools
from tests.parallel.cases import Case
from tests.parallel.gradients import assert_same_gradients, gradients

TOLERANCE = 1e-5  # sums over micro-batches and ranks in another order, and the rounding of weights

PIPELINE = ParallelConfig("torch", 1, 2, 1)
BOTH = ParallelConfig("torch", 2, 2, 1, sequence_parallel=True)
LAYOUTS = [
    Case("gpt", PIPELINE, micro_batch=1),  # tied: the embedding's gradient comes from both stages
    Case("llama", replace(PIPELINE, schedule="zbv"), micro_batch=1),
    Case("post", replace(PIPELINE, schedule="interleaved_1f1b", virtual_stages=2), micro_batch=1),
    Case("gpt", BOTH, micro_batch=1),
    Case("qwen", replace(BOTH, schedule="zbv", zero_stage=0), micro_batch=1),
]


@pytest.mark.parametrize("case", LAYOUTS, ids=str)
def test_gradients_of_torch_pipelines_are_those_of_deepspeed(case: Case, pools: Pools) -> None:
    theirs = replace(case.parallel, engine="deepspeed", schedule="1f1b", virtual_stages=1)
    assert_same_gradients(gradients(pools, case), gradients(pools, replace(case, parallel=theirs)), TOLERANCE)
