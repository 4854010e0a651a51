"""Quantised products against their definition written out, what they keep for backward, rotations, and bad options."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.formats import Draw, quantize
from models.formats.names import FORMATS
from models.formats.random import bits, line_bits
from models.formats.whole import WHOLE, quantize_whole
from models.kernels.hadamard import random_signs, rotate
from models.layers import PlainLayers
from models.precision import BLOCKS, UNQUANTISED, ProductConfig, ProductsConfig
from models.random import Clock

S, B, K, N = 64, 3, 96, 160
MX = [name for name in FORMATS if name != "nvfp4"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(products: ProductsConfig, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """(x, weight, upstream) and (output, input gradient, weight gradient) of a layer."""
    layer = PlainLayers(dtype, Clock(3), products=products).column("up", K, (N,), bias=False, std=0.1)
    layer.weight.data.copy_(noise(N, K, seed=1))
    x, upstream = noise(S, B, K, seed=2).to(dtype).requires_grad_(), noise(S, B, N, seed=3).to(dtype)
    y = layer(x, 11)
    y.backward(upstream)
    assert x.grad is not None and layer.weight.grad is not None
    return [x.detach(), layer.weight.detach(), upstream], [y.detach(), x.grad, layer.weight.grad]


def both(first: str, second: str, **options: object) -> dict[str, ProductConfig]:
    one = ProductConfig(**options)  # type: ignore[arg-type]
    return {
        "forward": replace(one, activation=first, weight=second),
        "input_gradient": replace(one, gradient=first, weight=second),
        "weight_gradient": replace(one, gradient=first, activation=second),
    }


@pytest.mark.parametrize("scale", ["floor", "rceil"])
@pytest.mark.parametrize("name", MX)
def test_each_operand_is_quantised_along_its_own_sum(name: str, scale: str) -> None:
    (x, weight, upstream), found = run(ProductsConfig(**both(name, name), scale=scale))
    x, weight, upstream = x.double(), weight.double(), upstream.double()

    def q(value: Tensor, dim: int) -> Tensor:
        return quantize(value.float(), name, dim, scale).dequantize(torch.float32).double()

    rows = (q(upstream, 0).flatten(0, 1), q(x, 0).flatten(0, 1))
    exact = [q(x, -1) @ q(weight, -1).t(), q(upstream, -1) @ q(weight, 0), rows[0].t() @ rows[1]]
    for ours, wanted in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_square_weights_are_the_same_in_forward_and_backward() -> None:
    products = ProductsConfig(**both("none", "none"))
    forward, backward = ProductConfig(weight="mxfp4_e2m1"), ProductConfig(weight="mxfp4_e2m1")
    (x, weight, upstream), found = run(ProductsConfig(forward, backward, square_weights=True))
    seen = quantize(weight, "mxfp4_e2m1", -1, square=True).dequantize()
    torch.testing.assert_close(found[0], x @ seen.t(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[1], upstream @ seen, rtol=1e-5, atol=1e-4)
    _, plain = run(products)
    torch.testing.assert_close(found[2], plain[2], rtol=1e-5, atol=1e-4)  # nothing of it is quantised


def test_rotation_changes_no_product_but_by_rounding() -> None:
    _, plain = run(UNQUANTISED)
    for options in (
        {"hadamard": "random", "hadamard_size": 32},
        {"hadamard": "deterministic", "hadamard_size": 16},
    ):
        _, found = run(ProductsConfig(**both("mxint8", "mxint8", **options)))
        for ours, wanted in zip(found, plain, strict=True):
            assert 0 < float((ours - wanted).norm() / wanted.norm()) < 0.02, options


def test_stochastic_rounding_has_no_bias_and_repeats_itself() -> None:
    options = {"rounding": "stochastic", "gradient_rounding": "stochastic"}
    products: dict = {"input_gradient": both("mxfp4_e2m1", "mxfp4_e2m1", **options)["input_gradient"]}
    (x, weight, upstream), first = run(ProductsConfig(**products, scale="rceil"))
    _, second = run(ProductsConfig(**products, scale="rceil"))
    assert torch.equal(first[1], second[1])
    product = PlainLayers(clock=Clock(3), products=ProductsConfig(**products, scale="rceil")).column(
        "up", K, (N,), bias=False, std=0
    )
    exact, total = upstream @ weight, torch.zeros_like(x)
    errors = []
    for sample in range(64):
        drawn = product.product.gradients(upstream, 1000 * sample)[0]
        total += product.product.for_input(drawn, weight, 1000 * sample, torch.float32)
        errors.append(float((total / (sample + 1) - exact).norm() / exact.norm()))
    assert errors[63] < errors[0] / 5, errors  # of 64 independent draws an eighth is left


@pytest.mark.parametrize(("name", "bits"), [("mxfp8_e4m3", 8.25), ("mxfp6_e3m2", 6.25), ("mxfp4_e2m1", 4.25)])
def test_activations_are_kept_for_backward_in_the_format(name: str, bits: float) -> None:
    layer = PlainLayers(torch.bfloat16, products=ProductsConfig(**both(name, name))).column(
        "up", K, (N,), bias=False, std=0.1
    )
    layer.weight.data.copy_(noise(N, K))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        layer(noise(S, B, K).bfloat16().requires_grad_())
    held = sum(x.nbytes for x in kept if x.data_ptr() != layer.weight.data_ptr())
    assert held == S * B * K * bits / 8


def test_a_rotation_undoes_itself_and_is_a_shards_as_well() -> None:
    x, signs = noise(5, 128, 7), random_signs(5, 64)
    torch.testing.assert_close(rotate(rotate(x, 1, 64), 1, 64), x, rtol=1e-5, atol=1e-5)
    turned = rotate(x, 1, 64, signs)
    torch.testing.assert_close(rotate(turned, 1, 64) * signs.repeat(2)[:, None], x, rtol=1e-5, atol=1e-5)
    part = rotate(x[:, 64:], 1, 64, signs)
    assert torch.equal(part, turned[:, 64:]), "a shard is rotated to the same bits"


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("name", WHOLE)
def test_fp8_with_one_scale_equals_ml_dtypes(name: str, scope: str) -> None:
    import ml_dtypes

    kinds = {"fp8_e4m3": (ml_dtypes.float8_e4m3fn, 448.0), "fp8_e5m2": (ml_dtypes.float8_e5m2, 57344.0)}
    kind, largest = kinds[name]
    x = noise(7, 33) * torch.arange(1, 8)[:, None]
    for dim in (0, 1):
        found = quantize_whole(x, name, dim, scope)
        amax = x.abs().amax() if scope == "tensor" else x.abs().amax(dim, keepdim=True)
        scale = torch.exp2(torch.ceil(torch.log2(amax.double() / largest))).float()
        wanted = torch.from_numpy((x / scale).numpy().astype(kind).astype(np.float32)) * scale
        assert torch.equal(found.dequantize(), wanted)
    broken = x.clone()
    broken[3, 5] = math.inf
    told = quantize_whole(broken, name, 1, scope).dequantize().isnan()
    assert told.all() if scope == "tensor" else (told.all(1).tolist() == [row == 3 for row in range(7)])


def test_the_table_without_torch_tells_the_formats_blocks() -> None:
    assert {name: found.block for name, found in {**FORMATS, **WHOLE}.items()} == BLOCKS


def test_a_sum_of_places_draws_like_a_box() -> None:
    x, shape = noise(32, 64), (100, 200)
    box = Draw(99, (3, 64), shape)
    lines = Draw(torch.tensor(99), places=(torch.arange(3, 35) * 200, torch.arange(64, 128)))
    first, second = (quantize(x, "mxfp4_e2m1", -1, "floor", "stochastic", draw=draw) for draw in (box, lines))
    assert torch.equal(first.elements, second.elements)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"forward": {"weight": "mxfp5"}}, ["precision.products.forward.weight=mxfp5", "mxfp6_e3m2"]),
        ({"forward": {"gradient": "mxint8"}}, ["forward.gradient=mxint8", "activation and weight"]),
        ({"weight_gradient": {"weight": "mxint8"}}, ["weight_gradient.weight=mxint8", "gradient and activation"]),
        ({"scale": "floor", "square_weights": True}, ["square_weights=True", "no effect"]),
        ({"forward": {"weight": "mxint8"}, "square_weights": True}, ["square_weights", "input_gradient.weight=none"]),
        ({"forward": {"weight": "mxint8"}, "scale": "round"}, ["precision.products.scale=round", "rceil"]),
        ({"forward": {"hadamard": "random"}}, ["forward.hadamard=random", "no effect"]),
        ({"forward": {"weight": "mxint8", "gradient_rounding": "stochastic"}}, ["gradient_rounding", "no effect"]),
        ({"forward": {"weight": "mxint8", "hadamard": "random", "hadamard_size": 48}}, ["hadamard_size=48", "power"]),
        ({"forward": {"weight": "mxint8"}, "high": ("norms",)}, ["high=norms", "router"]),
        ({"high_last": 2}, ["high_last=2", "no effect"]),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, words: list[str]) -> None:
    built = {key: ProductConfig(**value) if isinstance(value, dict) else value for key, value in options.items()}
    with pytest.raises(ModelError) as told:
        ProductsConfig(**built)
    for word in words:
        assert word in str(told.value)


def test_bits_by_lines_are_those_of_their_sums() -> None:
    lines = (torch.arange(40) * 700, (torch.arange(3) + 5) << 40, torch.tensor([0, 1, 2, 500, 501]))
    index = lines[0][:, None, None] + lines[1][:, None] + lines[2]
    for key in (12345, -(1 << 62) + 77, torch.tensor(1 << 50)):
        found = line_bits(key, lines)
        assert found is not None
        assert torch.equal(found.to(torch.int64) & 0xFFFFFFFF, bits(key, index))
    assert line_bits(1, (torch.tensor([1 << 31]), torch.tensor([1 << 31]))) is None, "a carry"
