"""A sharded quantised layer equals the unsharded one: no block straddles a shard, so what is multiplied is the same bits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from models.config import ModelConfig
from models.moe.config import MoEConfig
from models.precision import ProductConfig, ProductsConfig
from parallel.blocks import check_products
from parallel.config import ParallelConfig, ParallelError
from tests.helpers.pool import Pools
from tests.parallel import product_jobs

ROUNDED = 1e-5
"""Float32 sums of hundreds of terms in another order, relative to the largest. A block whose scale differed, or a number
rounded otherwise, would show at 1e-2."""


def products(name: str, rounding: str = "nearest_even", hadamard: str = "off", **options: object) -> ProductsConfig:
    both = {"rounding": rounding, "gradient_rounding": rounding, "hadamard": hadamard, "hadamard_size": 32}
    both = both if hadamard != "off" else {key: both[key] for key in ("rounding", "gradient_rounding")}
    return ProductsConfig(
        ProductConfig(activation=name, weight=name, **{k: v for k, v in both.items() if k != "gradient_rounding"}),  # type: ignore[arg-type]
        ProductConfig(gradient=name, weight=name, **both),  # type: ignore[arg-type]
        ProductConfig(gradient=name, activation=name, **both),  # type: ignore[arg-type]
        **options,  # type: ignore[arg-type]
    )


PRODUCTS = {
    "mxfp8": products("mxfp8_e4m3", scale="rceil"),
    "mxfp6, half away": products("mxfp6_e3m2", "half_away"),
    "mxfp4, stochastic, rotated": products("mxfp4_e2m1", "stochastic", "random"),
    "mxint8, square weights": products("mxint8", square_weights=True),
    "nvfp4, stochastic, square": products("nvfp4", "stochastic", square_weights=True),
    "fp8, by tensor": products("fp8_e5m2"),
    "fp8, by row, stochastic": products("fp8_e4m3", "stochastic", fp8_scale="row"),
}
LAYOUTS = {
    "tensor": ParallelConfig(tensor=2, data=1),
    "sequence": ParallelConfig(tensor=2, data=1, sequence_parallel=True),
    "ring": ParallelConfig(context=2, data=1),
    "ulysses": ParallelConfig(context=2, data=1, context_method="ulysses"),
}


@pytest.mark.parametrize("chosen", PRODUCTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["column", "row"])
def test_a_sharded_layer_equals_the_whole_one(kind: str, layout: str, chosen: str, pools: Pools) -> None:
    parts = (128, 64, 64) if kind == "column" else (96,)
    for told in pools.run(
        2,
        product_jobs.layer,
        parallel=LAYOUTS[layout],
        products=PRODUCTS[chosen],
        kind=kind,
        inputs=128,
        parts=parts,
        length=128,
    ):
        assert max(told.values()) < ROUNDED, told


@pytest.mark.parametrize("chosen", ["mxfp8", "mxfp4, stochastic, rotated", "mxint8, square weights"])
def test_experts_on_other_ranks_multiply_the_same_bits(chosen: str, pools: Pools) -> None:
    """Each rank's tokens of an expert are whole blocks, so it does not matter whose come beside them."""
    parallel = ParallelConfig(data=2, expert=2)
    for told in pools.run(2, product_jobs.mixture, parallel=parallel, products=PRODUCTS[chosen]):
        assert max(told.values()) < ROUNDED, told


MODEL = ModelConfig(hidden_size=128, layers=4, heads=4, ffn_size=192, vocab_size=256, max_sequence=256)
EXPERTS = replace(MODEL, moe=MoEConfig(experts=4, expert_size=64))
MXFP8 = products("mxfp8_e4m3")


@pytest.mark.parametrize(
    ("model", "parallel", "chosen", "length", "words"),
    [
        (replace(MODEL, ffn_size=176), {"tensor": 1}, MXFP8, 64, ["ffn_size", "176", "32", "feed_forward.down"]),
        (replace(MODEL, ffn_size=96), {"tensor": 2}, MXFP8, 64, ["ffn_size", "has 48", "parallel.tensor=2"]),
        (replace(MODEL, kv_heads=1), {"tensor": 2}, MXFP8, 64, ["kv_heads", "32", "has 16"]),
        (replace(MODEL, hidden_size=144, heads=4), {}, MXFP8, 64, ["hidden_size", "144"]),
        (MODEL, {}, MXFP8, 80, ["train.sequence_length=80", "80 tokens", "blocks of 32"]),
        (MODEL, {"tensor": 2, "sequence_parallel": True}, MXFP8, 96, ["sequence_length=96", "48 tokens"]),
        (MODEL, {"context": 2}, MXFP8, 64, ["sequence_length=64", "16 tokens"]),
        (MODEL, {}, products("mxfp4_e2m1", hadamard="random", high_first=4), 64, ["high_first=4", "no layer"]),
        (EXPERTS, {"context": 2}, MXFP8, 128, ["parallel.context=2", "weight_gradient"]),
        (EXPERTS, {"expert": 2, "data": 2}, products("fp8_e4m3"), 64, ["parallel.expert=2", "fp8_e4m3"]),
    ],
)
def test_what_straddles_a_shard_is_refused(
    model: ModelConfig, parallel: dict, chosen: ProductsConfig, length: int, words: list[str]
) -> None:
    with pytest.raises(ParallelError) as told:
        check_products(ParallelConfig(**{"data": 1} | parallel), model, chosen, length)
    for word in words:
        assert word in str(told.value)


def test_what_fits_is_let_through() -> None:
    for parallel in ({}, {"tensor": 2, "sequence_parallel": True}, {"context": 2}, {"tensor": 2, "context": 2}):
        check_products(ParallelConfig(data=1, **parallel), MODEL, MXFP8, 256)
    check_products(ParallelConfig(data=1), replace(MODEL, ffn_size=180), ProductsConfig(), 7)
