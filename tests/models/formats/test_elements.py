"""Element codings against independent authors (ml_dtypes), and against the definition written out in float64."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.elements import ELEMENTS, Element, decode, encode, values

THEIRS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
EVERY = list(ELEMENTS.values())


def bfloat16s() -> Tensor:
    """Every finite bfloat16, as float32."""
    found = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)
    return found[found.isfinite()]


def adversarial() -> Tensor:
    """float32 beside powers of two, ties of every format and beside them, subnormal, and spread over 2^±120."""
    powers = 2.0 ** torch.arange(-126, 127, dtype=torch.float32)
    ties = torch.cat([torch.arange(1, 4096, dtype=torch.float32) * 2.0**place for place in (-17, -8, -6, -3, 0, 4)])
    exact = torch.cat([powers, ties, 2.0**-149 * torch.arange(1, 4000, dtype=torch.float64).to(torch.float32)])
    spread = torch.randn(20_000, generator=(g := torch.Generator().manual_seed(1)))
    spread = spread * 2.0 ** torch.randint(-120, 120, (20_000,), generator=g).to(torch.float32)
    beside = [torch.nextafter(exact, torch.tensor(limit)) for limit in (0.0, torch.inf)]
    found = torch.cat([exact, *beside, spread])
    return torch.cat([found, -found])


@pytest.mark.parametrize("element", [ELEMENTS[name] for name in THEIRS], ids=lambda element: element.name)
def test_codes_stand_for_what_others_say(element: Element) -> None:
    theirs = np.arange(1 << element.bits, dtype=np.uint8).view(THEIRS[element.name]).astype(np.float32)
    assert np.array_equal(values(element).numpy(), theirs, equal_nan=True)
    assert element.largest == float(ml_dtypes.finfo(THEIRS[element.name]).max)


@pytest.mark.parametrize("element", [ELEMENTS[name] for name in THEIRS], ids=lambda element: element.name)
@pytest.mark.parametrize("numbers", [bfloat16s, adversarial])
def test_nearest_even_equals_others(element: Element, numbers) -> None:
    x = numbers().clamp(-element.largest, element.largest)  # beyond, formats differ: ours saturate
    found = encode(x, torch.zeros_like(x, dtype=torch.int64), element, "nearest_even")
    assert np.array_equal(found.numpy(), x.numpy().astype(THEIRS[element.name]).view(np.uint8))


@pytest.mark.parametrize("element", EVERY, ids=lambda element: element.name)
@pytest.mark.parametrize("rounding", ["nearest_even", "half_away"])
@pytest.mark.parametrize("scale", [-127, -40, -1, 0, 3, 90, 127])
def test_equals_the_definition_in_float64(element: Element, rounding: str, scale: int) -> None:
    x = torch.cat([adversarial(), torch.randn(4000, generator=torch.Generator().manual_seed(2)) * 2.0**scale])
    x = x[x.abs() < 2.0 ** min(127, scale + 20)]
    found = decode(encode(x, torch.full_like(x, scale, dtype=torch.int64), element, rounding), element)
    assert torch.equal(found.to(torch.float64), nearest(x, scale, element, rounding))


def nearest(x: Tensor, scale: int, element: Element, rounding: str) -> Tensor:
    """The grid point nearest to x / 2^scale, by search among all of them; ties by rule."""
    grid = values(element).to(torch.float64)
    grid = grid[grid.isfinite() & (grid >= 0)].unique()
    wanted = x.to(torch.float64) * 2.0**-scale
    size = wanted.abs().clamp_max(float(grid[-1]))
    above = torch.searchsorted(grid, size).clamp_max(len(grid) - 1)
    below = (above - 1).clamp_min(0)
    low, high = size - grid[below], grid[above] - size
    up = low > high
    tie = low == high
    up |= tie & ((above % 2 == 0) if rounding == "nearest_even" else True)  # a code's last bit is its place's
    return torch.where(up | (high == 0), grid[above], grid[below]) * wanted.sign()


@pytest.mark.parametrize("element", EVERY, ids=lambda element: element.name)
def test_a_value_of_the_format_is_itself_under_every_rounding(element: Element) -> None:
    codes = torch.arange(1 << element.bits, dtype=torch.int64).to(torch.uint8)
    x = decode(codes, element)
    keep = x.isfinite() & (x.abs() <= element.largest)
    codes, x = codes[keep], x[keep]
    draws = torch.randint(0, 1 << 32, x.shape, generator=torch.Generator().manual_seed(3))
    for rounding in ("nearest_even", "half_away", "stochastic"):
        assert torch.equal(encode(x, torch.zeros_like(x, dtype=torch.int64), element, rounding, draws), codes), rounding


@pytest.mark.parametrize("element", EVERY, ids=lambda element: element.name)
def test_stochastic_rounding_is_unbiased_and_takes_neighbours(element: Element) -> None:
    grid = values(element)
    grid = grid[grid.isfinite() & (grid >= 0)].unique()
    for place in range(0, len(grid) - 1, max(1, len(grid) // 16)):
        low, high = float(grid[place]), float(grid[place + 1])
        for share in (0.01, 0.3, 0.5, 0.9):
            value = torch.tensor(low + share * (high - low), dtype=torch.float32)
            draws = (torch.arange(4096, dtype=torch.int64) << 20) + (
                1 << 19
            )  # every 2^20-th of the 2^32, in the middle
            zeros = torch.zeros(4096, dtype=torch.int64)
            found = decode(encode(value.expand(4096), zeros, element, "stochastic", draws), element)
            assert set(found.tolist()) <= {low, high}
            exact = (float(value) - low) / (high - low)
            assert abs(float((found == high).double().mean()) - exact) <= 1 / 4096


def test_stochastic_rounding_asks_for_numbers() -> None:
    with pytest.raises(ModelError, match="needs a key"):
        encode(torch.ones(2), torch.zeros(2, dtype=torch.int64), ELEMENTS["e2m1"], "stochastic")
