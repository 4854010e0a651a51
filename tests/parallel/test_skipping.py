"""A gradient that is not finite on one rank: the step is skipped on all of them and leaves no trace."""

from __future__ import annotations

import math

import pytest

from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import jobs
from tests.parallel.cases import ADAMW, SGD, Case
from tests.parallel.jobs import Fault

FAULTY_STEP = 2
STEPS = [0, 1, 2, 3, 4]


def case(dialect: str, tensor: int, pipeline: int, data: int, precision: str = "fp32", **options: object) -> Case:
    engine = str(options.pop("engine", "deepspeed"))
    parallel = ParallelConfig(engine, tensor, pipeline, data, **options)  # type: ignore[arg-type]
    optimizer = SGD if dialect == "qwen" else ADAMW
    return Case(dialect, parallel, PrecisionConfig(precision), optimizer, micro_batch=4 if data == 1 else 2)


LAST_LAYER = "layers.3.attention.qkv.weight"  # on the last stage, cut over the tensor axis
EXPERTS = "layers.3.feed_forward.experts.down.weight"
CASES = [
    # layout, the rank whose gradient is spoilt, of which parameter, with what
    (case("llama", 1, 1, 1, zero_stage=0), 0, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 1, zero_stage=1), 0, LAST_LAYER, -math.inf),
    (case("llama", 1, 1, 2, zero_stage=0), 1, LAST_LAYER, math.nan),
    (case("qwen", 1, 1, 2, zero_stage=1), 0, "layers.0.attention.query_norm.weight", -math.inf),
    (case("llama", 1, 1, 2, zero_stage=1), 1, LAST_LAYER, math.nan),
    (case("gpt", 1, 1, 2, zero_stage=2), 1, "embedding.token.weight", -math.inf),
    (case("llama", 1, 1, 2, zero_stage=3), 1, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 2, zero_stage=1, offload_optimizer=True), 1, LAST_LAYER, -math.inf),
    (case("llama", 1, 1, 2, zero_stage=3, offload_optimizer=True), 0, LAST_LAYER, math.nan),
    (case("llama", 2, 1, 1, zero_stage=0), 1, LAST_LAYER, -math.inf),
    (case("gpt", 2, 1, 1, zero_stage=1, sequence_parallel=True), 1, LAST_LAYER, math.nan),
    (case("gpt", 1, 2, 1, zero_stage=0), 1, LAST_LAYER, -math.inf),
    (case("gpt", 1, 2, 1, zero_stage=1), 0, "positions.weight", math.nan),
    (case("qwen", 1, 2, 1, zero_stage=1), 1, LAST_LAYER, -math.inf),
    (case("llama", 2, 1, 2, zero_stage=3), 3, LAST_LAYER, math.nan),
    (case("llama", 2, 2, 2, zero_stage=0), 7, LAST_LAYER, -math.inf),
    (case("post", 2, 2, 2, zero_stage=1), 5, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 2, "bf16", zero_stage=1), 1, LAST_LAYER, -math.inf),
    (case("llama", 1, 1, 2, "bf16", zero_stage=2), 1, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 2, "bf16", zero_stage=3), 1, LAST_LAYER, -math.inf),
    (case("gpt", 1, 2, 2, "bf16", zero_stage=1), 3, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 2, engine="torch", zero_stage=0), 1, LAST_LAYER, math.nan),
    (case("gpt", 1, 1, 2, engine="torch", zero_stage=3), 0, "embedding.token.weight", -math.inf),
    (case("llama", 2, 1, 1, engine="torch"), 1, LAST_LAYER, -math.inf),
    (case("gpt", 1, 2, 2, "bf16", engine="torch", zero_stage=2), 3, LAST_LAYER, math.nan),
    (case("window", 1, 1, 1, context=2, zero_stage=0), 1, LAST_LAYER, math.nan),
    (case("gpt", 1, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=2), 1, LAST_LAYER, math.nan),
    (case("llama", 1, 1, 2, "bf16", engine="torch", zero_stage=3, compile="block"), 1, LAST_LAYER, math.nan),
    (case("capacity", 1, 1, 2, zero_stage=1, expert=2), 1, EXPERTS, math.nan),
    (case("switch", 1, 1, 2, zero_stage=0, expert=2), 0, EXPERTS, -math.inf),
    (case("capacity", 1, 1, 2, engine="torch", expert=2, zero_stage=3), 1, EXPERTS, -math.inf),
    (Case("llama", ParallelConfig("torch")), 0, LAST_LAYER, -math.inf),
    (Case("llama", ParallelConfig("torch"), PrecisionConfig("bf16")), 0, LAST_LAYER, math.nan),
]


@pytest.mark.parametrize(
    ("layout", "rank", "parameter", "value"), CASES, ids=lambda v: str(v) if isinstance(v, Case) else ""
)
def test_a_spoilt_gradient_on_one_rank_is_skipped_by_all(
    layout: Case, rank: int, parameter: str, value: float, pools: Pools
) -> None:
    fault = Fault(FAULTY_STEP, rank, parameter, value)
    faulty = pools.run(layout.world_size, jobs.train_with_fault, case=layout, steps=STEPS, fault=fault)
    without = [step for step in STEPS if step != FAULTY_STEP]
    clean = pools.run(layout.world_size, jobs.train_with_fault, case=layout, steps=without, fault=fault)
    assert [curve.struck > 0 for curve in faulty] == [r == rank for r in range(layout.world_size)]
    for one, other in zip(faulty, clean, strict=True):
        assert one.skipped == [step == FAULTY_STEP for step in STEPS]
        assert one.before == one.after, "the skipped step changed state"
        assert one.end != one.after, "the steps that follow do change it"
        assert not math.isfinite(one.norms.pop(FAULTY_STEP))
        assert math.isfinite(one.losses.pop(FAULTY_STEP)), "the loss of the step is a number: forward was sound"
        assert (one.losses, one.norms, one.end) == (other.losses, other.norms, other.end)
        assert one.state == other.state
