"""What quantising does to operands, counted: by hand on made-up tensors, and in a model's step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder, initialise_blocks
from models.formats.health import Health, tally
from models.formats.operand import Operand, operand
from models.formats.telemetry import LayerFormats, headline
from models.layers import PlainLayers
from models.moe.config import MoEConfig
from models.precision import ProductConfig, ProductsConfig
from models.random import Clock

PLACE = ("layers.0.up", "forward", "activation", "mxfp4_e2m1")


def quantised(x: Tensor, format: str, dim: int = -1, scale: str = "floor", square: bool = False) -> Operand:
    return operand(
        x,
        format,
        dim,
        scale=scale,
        scope="row",
        rounding="nearest_even",
        square=square,
        drawn=None,
        largest=lambda amax, whole: amax,
    )


def sums(x: Tensor, format: str, **options: object) -> list[float]:
    return tally(x, quantised(x, format, **options)).tolist()  # type: ignore[arg-type]


def test_a_block_of_fp4_by_hand() -> None:
    block = torch.zeros(32)
    block[:7] = torch.tensor([7.5, -6.0, 5.5, 4.0, 0.125, -0.25, 0.75])  # scale 1: 6 -6 6 4 0 -0 1, ties to even
    wrong = [1.5, 0.0, 0.5, 0.0, 0.125, 0.25, 0.25]
    elements, blocks, saturated, last, under, signal, noise, along = sums(block, "mxfp4_e2m1")
    assert (elements, blocks, saturated, last, under) == (7, 1, 1, 3, 2)
    assert signal == float(block.double().square().sum())
    assert noise == sum(value**2 for value in wrong)
    assert along == 7.5 * 6 + 6 * 6 + 5.5 * 6 + 16 + 0.75


def test_rounding_up_to_the_largest_is_no_saturation() -> None:
    block = torch.full((32,), 5.5)
    assert sums(block, "mxfp4_e2m1")[:5] == [32, 1, 0, 32, 0]
    assert sums(torch.full((32,), 6.5), "mxfp4_e2m1")[:5] == [32, 1, 1, 32, 0]
    assert sums(torch.full((32,), 6.5), "mxfp4_e2m1", scale="rceil")[2] == 0


def test_blocks_lie_where_the_operand_says() -> None:
    x = torch.ones(64, 96)
    x[0, :] = 1.9  # the first row; in E4M3 under floor 486 of 448
    assert sums(x, "mxfp8_e4m3", dim=0)[:3] == [64 * 96, 2 * 96, 96]
    assert sums(x, "mxfp8_e4m3", dim=1)[:3] == [64 * 96, 3 * 64, 3]
    assert sums(x, "mxfp8_e4m3", dim=1, square=True)[:3] == [64 * 96, 6, 3]
    assert sums(x, "fp8_e4m3", dim=1)[:3] == [64 * 96, 64, 0]  # rows, whose scale is rounded up


@pytest.mark.parametrize("format", ["mxint8", "nvfp4", "mxfp6_e2m3", "mxfp8_e5m2"])
def test_both_signs_are_in_the_last_bin(format: str) -> None:
    x = torch.ones(64)
    x[::2] = -1.0
    largest = {"mxint8": 127 / 64, "nvfp4": 6.0, "mxfp6_e2m3": 7.5, "mxfp8_e5m2": 57344.0}[format]
    elements, _, saturated, last, under, *_ = sums(x * largest, format)
    assert (elements, saturated, last, under) == (64, 0, 64, 0)


def test_zeros_and_what_is_not_finite_count_nowhere() -> None:
    x = torch.zeros(3, 32)
    x[0] = 1.0
    x[1, 4] = torch.inf
    assert sums(x, "mxfp8_e4m3") == [32, 1, 0, 0, 0, 32, 0, 32]
    assert sums(torch.zeros(0, 32), "mxfp8_e4m3") == [0.0] * 8


def test_figures_follow_from_the_sums() -> None:
    found = LayerFormats.of(*PLACE, [100.0, 4.0, 1.0, 10.0, 5.0, 50.0, 0.5, 49.0])
    assert (found.saturated, found.last_bin, found.underflow) == (0.25, 0.1, 0.05)
    assert found.snr == pytest.approx(20.0) and found.bias == pytest.approx(-0.02)
    exact = LayerFormats.of(*PLACE, [1.0, 1.0, 0.0, 0.0, 0.0, 4.0, 0.0, 4.0])
    assert exact.snr == math.inf and exact.bias == 0
    nothing = LayerFormats.of(*PLACE, [0.0] * 8)
    assert (nothing.saturated, nothing.bias, nothing.snr) == (0, 0, math.inf)


def test_a_headline_is_the_worst() -> None:
    assert headline([]) == {}
    one = LayerFormats("a", "forward", "activation", "mxint8", 0.1, 0.2, 0.3, 12.0, 0.5)
    assert headline([one]) == {
        "format_saturated": 0.1,
        "format_last_bin": 0.2,
        "format_underflow": 0.3,
        "format_snr": 12.0,
    }
    other = LayerFormats("b", "input_gradient", "gradient", "mxint8", 0.2, 0.1, 0.4, 9.0, -0.03)
    third = LayerFormats("b", "weight_gradient", "gradient", "mxint8", 0.0, 0.0, 0.0, 19.0, 0.01)
    assert headline([one, other, third]) == {
        "format_saturated": 0.2,
        "format_last_bin": 0.2,
        "format_underflow": 0.4,
        "format_snr": 9.0,
        "format_gradient_bias": -0.03,
    }


def test_counting_again_counts_once_and_micro_batches_add_up() -> None:
    health, x = Health(), torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    found = quantised(x, "mxfp4_e2m1")
    health.start(recording=True)
    for first_sample in (0, 2, 0, torch.tensor(2)):
        health.record(PLACE, first_sample, x, found)
    (seen,) = health.collect().values()
    torch.testing.assert_close(seen, 2 * tally(x, found), rtol=0, atol=0)
    assert not health.recording and not health.collect()


MODEL = ModelConfig(hidden_size=32, layers=2, heads=2, ffn_size=64, vocab_size=64, max_sequence=64)
PRODUCTS = ProductsConfig(
    ProductConfig(activation="mxfp8_e4m3", weight="mxfp8_e4m3"),
    ProductConfig(gradient="mxfp8_e4m3", weight="mxfp8_e4m3"),
    ProductConfig(gradient="mxfp8_e4m3", activation="mxfp8_e4m3"),
)


def counted(model: ModelConfig, recompute: str, recording: bool = True) -> dict:
    layers = PlainLayers(clock=Clock(1), products=PRODUCTS)
    decoder = Decoder(model, layers, recompute=recompute)
    initialise_blocks(iter(decoder.blocks), 1)
    layers.routing.place(torch.device("cpu"))
    layers.routing.start(1.0)
    layers.clock.start(0)
    layers.health.start(recording=recording)
    tokens = torch.randint(64, (4, 64), generator=torch.Generator().manual_seed(2))
    for rows in tokens.split(2):
        decoder(rows).float().logsumexp(-1).sum().backward()
    return layers.health.collect()


@pytest.mark.parametrize("experts", [0, 4])
def test_a_model_counts_every_operand_of_every_linear_layer(experts: int) -> None:
    model = ModelConfig(**{**vars(MODEL), "moe": MoEConfig(experts=experts, expert_size=32)}) if experts else MODEL
    found = counted(model, "none")
    inner = "feed_forward.experts" if experts else "feed_forward"
    names = [f"layers.{i}.{part}" for i in (0, 1) for part in ("attention.qkv", "attention.output", f"{inner}.up")]
    assert {place[0] for place in found} == {*names, *(f"layers.{i}.{inner}.down" for i in (0, 1))}
    assert len(found) == 8 * 6  # three products of two operands
    elements = {place[:3]: float(seen[0]) for place, seen in found.items()}
    assert elements["layers.0.attention.qkv", "forward", "activation"] == 4 * 64 * 32
    assert elements["layers.0.attention.qkv", "forward", "weight"] == 2 * 96 * 32  # of two micro-batches
    again = counted(model, "block")
    assert found.keys() == again.keys()
    for place, seen in found.items():
        torch.testing.assert_close(again[place], seen, rtol=0, atol=0)


def test_nothing_is_counted_where_nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("counted")

    monkeypatch.setattr("models.formats.health.tally", refuse)
    assert counted(MODEL, "none", recording=False) == {}


def test_a_compiled_layer_is_one_graph_that_counts_nothing() -> None:
    layers = PlainLayers(clock=Clock(1), products=PRODUCTS)
    layer = layers.within("layers.0").column("up", 32, (64,), bias=False, std=0.1)
    torch.nn.init.normal_(layer.weight)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(32, 2, 32, requires_grad=True)
    compiled(x, torch.tensor(0)).sum().backward()
    assert layers.health.collect() == {}
