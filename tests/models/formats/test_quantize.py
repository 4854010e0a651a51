"""Blocks: scales by every rule, special blocks, layouts, packing, parts; the SQNR that others published."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.formats import ELEMENTS, FORMATS, MODES, Draw, MXTensor, quantize
from models.formats.packing import pack, unpack
from models.formats.scales import NAN, power, shared_exponent

POWERS_OF_TWO = [name for name, found in FORMATS.items() if found.scale == "e8m0"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(amax: float, largest: float, emax: int, mantissa_bits: int, mode: str) -> int:
    """Exponent of the scale of a block, in exact arithmetic of Python's floats."""
    fraction, exponent = math.frexp(amax)  # amax = fraction * 2^exponent, fraction in [0.5, 1)
    if mode == "ceil":
        found = (exponent - 1 if fraction == 0.5 else exponent) - emax
    elif mode == "rceil":
        found = exponent - 1 - emax
        found += amax > largest * 2.0**found if found > -1000 else 0
    elif mode == "even":
        rounded = math.floor(fraction * 2 ** (mantissa_bits + 1) + 0.5)
        found = exponent - 1 - emax + (rounded == 2 ** (mantissa_bits + 1))
    else:
        found = exponent - 1 - emax
    return max(-127, min(127, found))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", POWERS_OF_TWO)
def test_scales_are_those_of_the_definition(name: str, mode: str) -> None:
    element = FORMATS[name].element
    powers = 2.0 ** torch.arange(-149, 128, dtype=torch.float64)
    limits = torch.tensor([1.0, element.largest / 2.0**element.largest_exponent, 1.5, 1.75, 1.9], dtype=torch.float64)
    exact = (powers[:, None] * limits).flatten().to(torch.float32)
    exact = exact[exact.isfinite() & (exact > 0)]
    amax = torch.cat([exact, *(torch.nextafter(exact, torch.tensor(limit)) for limit in (0.0, torch.inf))])
    amax = amax[amax.isfinite() & (amax > 0)]
    found = shared_exponent(amax, element, mode).to(torch.int64) - 127
    expected = [
        by_definition(value, element.largest, element.largest_exponent, element.mantissa_bits, mode)
        for value in amax.to(torch.float64).tolist()
    ]
    assert found.tolist() == expected


def test_scales_of_zeros_and_of_what_is_no_number() -> None:
    amax = torch.tensor([0.0, torch.inf, torch.nan])
    for mode in MODES:
        assert shared_exponent(amax, ELEMENTS["e4m3"], mode).tolist() == [0, NAN, NAN]
    scales = power(torch.tensor([0, 1, 127, 254, 255], dtype=torch.uint8)).to(torch.float64)
    assert scales[:4].tolist() == [2.0**-127, 2.0**-126, 1.0, 2.0**127] and scales[4].isnan()


PUBLISHED = {  # dB on normal numbers, 256 x 1024 in bfloat16, of torchao 0.18: floor, rceil, ceil, even
    "mxfp8_e4m3": (30.65, 31.46, 31.46, 31.13),
    "mxfp8_e5m2": (25.37, 25.53, 25.53, 25.53),
    "mxfp6_e2m3": (30.91, 30.91, 28.75, 30.94),
    "mxfp6_e3m2": (25.37, 25.53, 25.53, 25.53),
    "mxfp4_e2m1": (18.83, 18.78, 16.85, 19.05),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_signal_to_noise_is_as_published(name: str) -> None:
    x = randn(256, 1024).to(torch.bfloat16)
    for mode, expected in zip(("floor", "rceil", "ceil", "even"), PUBLISHED[name], strict=True):
        y = quantize(x, name, scale=mode).dequantize()
        ratio = 10 * math.log10(float(x.float().pow(2).sum() / (x.float() - y).pow(2).sum()))
        assert ratio == pytest.approx(expected, abs=0.06), mode


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_every_block_is_quantised_by_itself(name: str, dim: int) -> None:
    x = randn(64, 96) * 2.0 ** (10 * randn(64, 96, seed=1)).round()
    whole, width = quantize(x, name, dim), FORMATS[name].block
    extra = {"whole_amax": x.abs().max()} if name == "nvfp4" else {}
    assert whole.shape == x.shape and whole.dim == dim % 2
    for line in range(0, x.shape[dim] - width + 1, width):
        part = x.narrow(dim, line, width)
        alone = quantize(part, name, dim, **extra).dequantize()
        assert torch.equal(alone, whole.dequantize().narrow(dim, line, width))
        assert torch.equal(alone, whole.narrow(dim, line, width).dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_square_blocks_and_their_transpose_have_the_same_bits(name: str) -> None:
    x, width = randn(64, 96), FORMATS[name].block
    found = quantize(x, name, square=True)
    assert found.scales.shape == (64 // width, 96 // width)
    turned = quantize(x.t(), name, square=True)
    assert torch.equal(found.t().elements, turned.elements) and torch.equal(found.t().scales, turned.scales)
    assert torch.equal(found.t().dequantize(), found.dequantize().t())
    assert torch.equal(found.narrow(0, 32, 32).dequantize(), found.dequantize()[32:])
    along_rows = quantize(x, name, 0, square=True)
    assert torch.equal(along_rows.dequantize(), found.dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_a_transpose_is_a_view_of_the_same_blocks(name: str) -> None:
    found = quantize(randn(32, 64), name)
    turned = found.t()
    assert turned.shape == (64, 32) and turned.dim == 0
    assert turned.elements.data_ptr() == found.elements.data_ptr()
    assert torch.equal(turned.dequantize(), found.dequantize().t())


@pytest.mark.parametrize("name", FORMATS)
def test_special_blocks(name: str) -> None:
    width = FORMATS[name].block
    x = randn(6, 2 * width)
    x[0, 3], x[1, width + 1], x[2, 0] = torch.nan, torch.inf, -torch.inf
    x[3], x[4] = 0.0, 2.0**-140
    found = quantize(x, name).dequantize()
    for row, place in ((0, 0), (1, 1), (2, 0)):
        halves = found[row].view(2, width)
        assert halves[place].isnan().all() and halves[1 - place].isfinite().all()
    assert torch.equal(found[3], torch.zeros(2 * width))
    if name in POWERS_OF_TWO:
        smallest = 2.0**-127 * 2.0 ** (FORMATS[name].element.smallest_exponent - FORMATS[name].element.mantissa_bits)
        assert set(found[4].tolist()) <= {0.0, smallest, 2.0**-140}


@pytest.mark.parametrize("name", FORMATS)
def test_storage_is_as_small_as_the_format_and_survives_saving(name: str) -> None:
    x = randn(64, 128).to(torch.bfloat16)
    found = quantize(x, name)
    assert found.nbytes * 8 - (32 if name == "nvfp4" else 0) == FORMATS[name].bits * x.numel()
    file = io.BytesIO()
    torch.save(found.state_dict(), file)
    file.seek(0)
    again = MXTensor.from_state_dict(torch.load(file))
    assert torch.equal(again.dequantize(), found.dequantize()) and again.shape == x.shape


@pytest.mark.parametrize("bits", [4, 6, 8])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_packing_is_undone_by_unpacking(bits: int, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), max_size=2))
    codes = torch.tensor(
        data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=8, max_size=8)), dtype=torch.uint8
    )
    codes = codes.expand(*shape, 8).contiguous()
    packed = pack(codes, bits)
    assert packed.shape[-1] == bits and torch.equal(unpack(packed, bits), codes)
    number = sum(int(code) << (bits * place) for place, code in enumerate(codes.flatten()[:8].tolist()))
    assert int.from_bytes(bytes(packed.flatten()[:bits].tolist()), "little") == number


@pytest.mark.parametrize("name", POWERS_OF_TWO)
def test_bfloat16_holds_the_values(name: str) -> None:
    found = quantize(randn(64, 64) * 2.0 ** (8 * randn(64, 64, seed=2)).round(), name)
    assert torch.equal(found.dequantize(torch.bfloat16).float(), found.dequantize())


@pytest.mark.parametrize("name", FORMATS)
def test_stochastic_rounding_draws_by_place_in_the_whole(name: str) -> None:
    x, draw = randn(64, 128), Draw(key=(7 << 40) + 5)
    extra = {"whole_amax": x.abs().max()} if name == "nvfp4" else {}
    whole = quantize(x, name, rounding="stochastic", draw=draw).dequantize()
    assert torch.equal(whole, quantize(x, name, rounding="stochastic", draw=draw).dequantize())
    part = Draw(draw.key, (32, 64), (64, 128))
    assert torch.equal(
        whole[32:, 64:], quantize(x[32:, 64:], name, rounding="stochastic", draw=part, **extra).dequantize()
    )
    assert not torch.equal(whole, quantize(x, name, rounding="stochastic", draw=Draw(9)).dequantize())
    assert not torch.equal(whole, quantize(x, name).dequantize())


def test_stochastic_rounding_has_the_mean_of_what_it_rounds() -> None:
    x = torch.full((1 << 14, 32), 1 + 1 / 512)
    x[:, 0] = 1.75  # the block's scale
    found = quantize(x, "mxfp8_e4m3", rounding="stochastic", draw=Draw(3)).dequantize()[:, 1:]
    assert set(found.unique().tolist()) == {1.0, 1.125}
    share = float((found == 1.125).double().mean())  # of n draws, its standard deviation is sqrt(p (1 - p) / n)
    expected = 1 / 64
    assert abs(share - expected) < 5 * math.sqrt(expected / found.numel())


WRONG = [
    ({"format": "mxfp7"}, "number format 'mxfp7': no such format; choose one of mxfp8_e4m3"),
    ({"dim": 2}, r"dim=2: a tensor of shape \(32, 48\) has no such dimension"),
    ({"dim": 1}, "48 elements along a dimension of .* are no multiple of the block, 32"),
    ({"scale": "up"}, "scale='up': choose one of floor, rceil, ceil, even"),
    ({"rounding": "up"}, "rounding='up': choose one of"),
    ({"rounding": "stochastic", "dim": 0}, "needs a key"),
    ({"format": "nvfp4", "scale": "ceil"}, "has no effect on nvfp4"),
    ({"square": True, "dim": 0}, "48 elements along a dimension"),
]


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_mistakes_are_told(options: dict, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        quantize(torch.ones(32, 48), **{"format": "mxfp8_e4m3", **options})


def test_mistakes_of_parts_and_dtypes_are_told() -> None:
    with pytest.raises(ModelError, match="not torch.int64"):
        quantize(torch.ones(32, dtype=torch.int64), "mxint8")
    with pytest.raises(ModelError, match="begin and end at multiples of its block, 32"):
        quantize(torch.ones(4, 64), "mxint8").narrow(1, 16, 32)
    with pytest.raises(ModelError, match="only a matrix"):
        quantize(torch.ones(64), "mxint8").t()
    with pytest.raises(ModelError, match="no whole bytes"):
        pack(torch.ones(3, dtype=torch.uint8), 4)
