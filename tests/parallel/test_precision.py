"""bf16 and fp16: layouts in bf16 against one process of plain PyTorch in bf16; fp16's dynamic loss scale.

Curves in bf16 cannot agree to float32 rounding: a master weight that differs in its last bit may round to another bf16
weight, 0.4 % away. What can be held exactly is the first update, whose weights are the same everywhere; over many steps
a layout may not be farther from the float32 curve than twice what bf16 in one process is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from launcher.config import OptimizerConfig
from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import jobs, state_jobs
from tests.parallel.cases import ADAMW, Case

FP32, BF16 = PrecisionConfig("fp32"), PrecisionConfig("bf16")
# an update is the gradient itself: no momentum, no decay
PLAIN_SGD = OptimizerConfig(name="sgd", learning_rate=0.3, beta1=0.0, weight_decay=0.0, clip_norm=0.5)
BF16_ROUNDING = 2.0**-8  # largest relative error of a number rounded to bf16

Once = Callable[..., object]


def layout(dialect: str, tensor: int, pipeline: int, data: int, **options: object) -> Case:
    engine = str(options.pop("engine", "deepspeed"))
    parallel = ParallelConfig(engine, tensor, pipeline, data, **options)  # type: ignore[arg-type]
    return Case(dialect, parallel, BF16, PLAIN_SGD, micro_batch=2)


@pytest.fixture(scope="module")
def first_update(pools: Pools) -> Callable[[Case], dict[str, Tensor]]:
    """Change of every master weight in the first step."""
    known: dict[Case, dict[str, Tensor]] = {}

    def of(case: Case) -> dict[str, Tensor]:
        if case not in known:
            before, after = (
                state_jobs.assemble(pools.run(case.world_size, state_jobs.saved_pieces, case=case, steps=steps))
                for steps in (0, 1)
            )
            known[case] = {name: after[name] - before[name] for name in before}
        return known[case]

    return of


SAME_ARITHMETIC = [
    layout("llama", 1, 1, 1, zero_stage=1),
    layout("llama", 1, 1, 2, zero_stage=1),
    layout("gpt", 1, 1, 2, zero_stage=2),
    layout("post", 1, 1, 2, zero_stage=2, offload_optimizer=True, recompute="selective"),
    layout("qwen", 1, 1, 2, zero_stage=3, recompute="block"),
    layout("gpt", 1, 1, 2, zero_stage=3, offload_optimizer=True),
    layout("llama", 1, 2, 1, zero_stage=1),
    layout("gpt", 1, 2, 1, zero_stage=1),
    layout("post", 1, 2, 2, zero_stage=1, recompute="block"),
    layout("llama", 1, 1, 2, engine="torch", zero_stage=0),
    layout("gpt", 1, 1, 2, engine="torch", zero_stage=3),
    layout("qwen", 1, 1, 4, engine="torch", zero_stage=2, data_replicas=2),
    layout("post", 1, 2, 1, engine="torch", recompute="block"),
    layout("llama", 1, 2, 1, engine="torch", schedule="zbv"),
]


@pytest.mark.parametrize("case", SAME_ARITHMETIC, ids=str)
def test_first_update_in_bf16_is_that_of_one_process(case: Case, first_update: Callable) -> None:
    """No product is cut, so micro-batches give the same bf16 gradients; their float32 sum over micro-batches and data
    ranks may differ in its last bits only. A sum in bf16 would be off by 2e-3."""
    ours, theirs = first_update(case), first_update(case.reference)
    assert ours.keys() == theirs.keys()
    for name, update in theirs.items():
        size = float(update.abs().max())
        assert size > 0, name
        error = float((ours[name] - update).abs().max()) / size
        # a tied embedding's two gradients of a micro-batch are rounded before they are summed, or after
        summed_apart = case.parallel.pipeline > 1 and case.model.tied_embeddings and name == "embedding.token.weight"
        allowed = BF16_ROUNDING if summed_apart else 2e-4
        assert error <= allowed, f"{name}: {error:.1e}"


CUT_PRODUCTS = [
    layout("gpt", 1, 1, 1, context=2, zero_stage=2),
    layout("parted", 1, 1, 1, context=4, zero_stage=1),
    layout("qwen", 1, 1, 1, engine="torch", context=2, context_method="ulysses", zero_stage=3),
    layout("llama", 2, 1, 1, zero_stage=1),
    layout("gpt", 2, 1, 1, zero_stage=3, sequence_parallel=True),
    layout("qwen", 2, 1, 2, zero_stage=2, sequence_parallel=True),
    layout("post", 2, 2, 2, zero_stage=1, sequence_parallel=True, recompute="selective"),
    layout("gpt", 2, 1, 2, engine="torch", zero_stage=3, sequence_parallel=True),
]
COMPILED = [
    layout("llama", 1, 1, 2, zero_stage=2, compile="block"),
    layout("qwen", 1, 1, 2, engine="torch", compile="block"),
]


@pytest.mark.parametrize("case", CUT_PRODUCTS + COMPILED, ids=str)
def test_rounding_elsewhere_in_bf16_adds_no_more_error_than_bf16_has(case: Case, first_update: Callable) -> None:
    """Partial products are rounded to bf16 before they are summed, a compiled layer rounds between other operations: the
    update of each parameter may lie twice as far from the float32 one as bf16's own."""
    ours, plain = first_update(case), first_update(case.reference)
    truth = first_update(replace(case.reference, precision=FP32))
    for name, exact in truth.items():
        error, usual = float((ours[name] - exact).norm()), float((plain[name] - exact).norm())
        assert error <= 2 * usual, f"{name}: off by {error / float(exact.norm()):.1e}, bf16 itself by {usual:.1e}"


CURVES = [
    replace(case, optimizer=ADAMW)
    for case in (
        layout("llama", 1, 1, 2, zero_stage=1),
        layout("llama", 1, 1, 2, zero_stage=3),
        layout("gpt", 1, 2, 2, zero_stage=1),
        layout("gpt", 2, 1, 2, zero_stage=2, sequence_parallel=True),
        layout("post", 2, 2, 2, zero_stage=1),
        replace(
            layout("documents", 2, 1, 1, engine="torch", context=2, zero_stage=2, sequence_parallel=True), micro_batch=4
        ),
    )
]


@pytest.mark.parametrize("case", CURVES, ids=str)
def test_curves_in_bf16_stay_as_near_to_float32_as_one_process(case: Case, pools: Pools) -> None:
    ours = pools.run(case.world_size, jobs.train, case=case)[0]
    plain = pools.run(1, jobs.train, case=case.reference)[0]
    truth = pools.run(1, jobs.train, case=replace(case.reference, precision=FP32))[0]
    assert plain.losses != truth.losses, "bf16 is not float32"
    assert _distance(ours, truth) <= 2 * _distance(plain, truth)
    assert ours.validation == pytest.approx(truth.validation, rel=BF16_ROUNDING)


def _distance(one: jobs.Curve, other: jobs.Curve) -> float:
    """Root mean square of the relative differences of losses."""
    return math.sqrt(sum((a / b - 1) ** 2 for a, b in zip(one.losses, other.losses, strict=True)) / len(one.losses))


HALF_LAYOUTS = [
    ParallelConfig("torch"),
    ParallelConfig("torch", 1, 1, 2, zero_stage=3),
    ParallelConfig("torch", 2, 1, 1, sequence_parallel=True),
    ParallelConfig("torch", 1, 2, 1, schedule="zbv"),
    ParallelConfig("torch", 1, 2, 2, zero_stage=0),
]


def half(layout: ParallelConfig, **options: int) -> Case:
    return Case("gpt", layout, PrecisionConfig("fp16", **options), micro_batch=2)


@pytest.mark.parametrize("layout", HALF_LAYOUTS, ids=lambda layout: str(half(layout)))
def test_the_loss_scale_of_fp16_halves_at_overflow_and_doubles_after_a_window(
    layout: ParallelConfig, pools: Pools
) -> None:
    window = 3
    case = half(layout, initial_loss_scale_power=24, loss_scale_window=window)
    curve, *others = pools.run(case.world_size, jobs.train_watching_scale, case=case, steps=24)
    assert all((other.scales, other.skipped) == (curve.scales, curve.skipped) for other in others)
    assert curve.skipped[:2] == [True, True], "a scale of 2^24 must overflow fp16's 65504"
    assert not all(curve.skipped)
    scale, good = 2.0**24, 0
    for skipped, found in zip(curve.skipped, curve.scales, strict=True):
        scale, good = (scale / 2, 0) if skipped else (scale, good + 1)
        if good == window:
            scale, good = scale * 2, 0
        assert found == scale
    ups = [b > a for a, b in zip(curve.scales, curve.scales[1:], strict=False)]
    assert any(ups), "the scale doubled at least once"
    assert curve.state["applied_steps"] == curve.skipped.count(False)


@pytest.mark.parametrize("layout", HALF_LAYOUTS, ids=lambda layout: str(half(layout)))
def test_fp16_learns_as_float32_does(layout: ParallelConfig, pools: Pools) -> None:
    """With a scale that never overflows: rounding is the only difference."""
    case = half(layout, initial_loss_scale_power=10)
    found = pools.run(case.world_size, jobs.train, case=case)[0]
    (single,) = pools.run(1, jobs.train, case=replace(case.reference, precision=FP32))
    assert not any(found.skipped)
    assert found.losses != single.losses
    assert found.losses == pytest.approx(single.losses, rel=2.0**-11 * 4)
    assert found.norms == pytest.approx(single.norms, rel=0.01), "the norm is told without the loss scale"
