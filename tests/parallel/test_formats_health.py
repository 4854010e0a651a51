"""Figures of operands in block formats are those of one process at every layout, and only where a step is asked for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.config import ModelConfig
from models.formats.telemetry import LayerFormats
from models.moe.config import MoEConfig
from models.precision import ProductConfig, ProductsConfig
from parallel.config import ParallelConfig, PrecisionConfig
from tests.helpers.pool import Pools
from tests.parallel import formats_jobs

MODEL = ModelConfig(
    hidden_size=64, layers=2, heads=4, ffn_size=64, vocab_size=64, vocab_multiple=64, max_sequence=128, init_std=0.1
)
EXPERTS = replace(MODEL, moe=MoEConfig(experts=4, expert_size=64))
FP4 = PrecisionConfig(
    "fp32",
    products=ProductsConfig(
        ProductConfig(activation="mxfp6_e3m2", weight="mxfp4_e2m1"),
        ProductConfig(gradient="mxfp6_e3m2", weight="mxfp4_e2m1"),
        ProductConfig(gradient="mxfp6_e3m2", activation="mxfp4_e2m1"),
        high=("embeddings", "router"),
    ),
)
LAYOUTS = {
    "tensor": {"tensor": 2},
    "sequence": {"tensor": 2, "sequence_parallel": True, "engine": "torch"},
    "pipeline": {"pipeline": 2},
    "stages": {"pipeline": 2, "engine": "torch"},
    "data": {"data": 2, "zero_stage": 2},
    "context": {"context": 2},
    "recomputed": {"data": 2, "engine": "torch", "zero_stage": 3, "recompute": "block"},
}


def figures(pools: Pools, model: ModelConfig, recorded: list[bool], **options: object) -> list[tuple]:
    parallel = ParallelConfig(**{"data": 1} | options)  # type: ignore[arg-type]
    world = parallel.tensor * parallel.pipeline * parallel.context * parallel.data
    found = pools.run(world, formats_jobs.steps, parallel=parallel, model=model, precision=FP4, recorded=recorded)
    assert all(one == found[0] for one in found), "ranks tell different things"
    return found[0]


@pytest.fixture(scope="module")
def whole(pools: Pools) -> list[tuple]:
    return figures(pools, MODEL, [True, False], engine="torch")


def assert_alike(found: tuple[LayerFormats, ...], expected: tuple[LayerFormats, ...]) -> None:
    """Float32 sums in another order round a value to its neighbour, and all that follows from it: exact are sums of the same
    operands (`test_sums_of_ranks_are_exactly_those_of_the_whole`)."""

    def place(one: LayerFormats) -> tuple:
        return one.layer, one.product, one.role, one.format

    assert [place(one) for one in found] == [place(one) for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("saturated", "last_bin", "underflow", "bias"):
            rounded = 0.015 if name == "saturated" else 1e-3  # of blocks, of which there are few
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=0.1, abs=rounded), (
                name,
                ours,
                theirs,
            )
        assert ours.snr == pytest.approx(theirs.snr, abs=0.1), (ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_tells_what_one_process_does(layout: str, whole: list[tuple], pools: Pools) -> None:
    (found,) = figures(pools, MODEL, [True], **LAYOUTS[layout])
    assert_alike(found, whole[0])


@pytest.mark.parametrize("axis", ["tensor", "pipeline"])
def test_sums_of_ranks_are_exactly_those_of_the_whole(axis: str, pools: Pools) -> None:
    parallel = ParallelConfig(data=1, **{axis: 2})  # type: ignore[arg-type]
    for found, expected in pools.run(2, formats_jobs.added_up, parallel=parallel, same_layer=axis == "tensor"):
        assert found == expected


def test_experts_of_other_ranks_count_once(pools: Pools) -> None:
    (expected,) = figures(pools, EXPERTS, [True], engine="torch")
    (found,) = figures(pools, EXPERTS, [True], data=2, expert=2)
    assert_alike(found, expected)


def test_only_a_step_that_is_asked_tells(whole: list[tuple]) -> None:
    told, nothing = whole
    assert nothing == ()
    names = list(dict.fromkeys(one.layer for one in told))
    inside = [f"layers.{i}.{part}" for i in (0, 1) for part in ("attention.output", "attention.qkv")]
    assert set(inside) < set(names) and "head.projection" in names
    assert len(told) == 6 * len(names) == 6 * 9
    for one in told:
        assert one.format == ("mxfp6_e3m2" if (one.product, one.role) in SIX else "mxfp4_e2m1")
        assert 10 < one.snr < 40 and 0 < one.last_bin < 0.15, one
        # the head's gradients are nearly 1 at every target, and so all beyond their scale
        assert abs(one.bias) < 0.05 or (one.layer, one.role) == ("head.projection", "gradient"), one


SIX = {("forward", "activation"), ("input_gradient", "gradient"), ("weight_gradient", "gradient")}
