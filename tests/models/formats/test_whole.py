"""FP8 under one scale for a row or a tensor: torch's casts and 32-bit arithmetic give the bits of the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.errors import ModelError
from models.formats.elements import encode
from models.formats.scales import BIAS, NAN, shared_exponent
from models.formats.tensor import MXTensor
from models.formats.whole import WHOLE, dequantize_whole, quantize_whole


def numbers() -> Tensor:
    """float32 [64, 512]: of 2^±40, NaN, infinity, zeros, subnormals, a row that lies evenly, every power of two and its
    neighbours."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 512, generator=g) * 2.0 ** torch.randint(-40, 40, (64, 512), generator=g)
    x[3, 5], x[4, 4], x[5], x[6] = torch.nan, -torch.inf, x[5] * 2.0**-100, 0.0
    x[7], x[8] = x[7].sign() * 1e-39, torch.linspace(-1, 1, 512)
    powers = 2.0 ** torch.arange(-149, 21)
    x[9, :510] = torch.cat([powers, *(torch.nextafter(powers, torch.tensor(limit)) for limit in (0.0, 9e9))])
    return x


def defined(x: Tensor, name: str, dim: int, scope: str, rounding: str, random: Tensor) -> MXTensor:
    """In int64."""
    values, element = x.movedim(dim, -1).to(torch.float32), WHOLE[name].element
    magnitudes = torch.where(values.isnan(), torch.inf, values.abs())
    amax = magnitudes.amax() if scope == "tensor" else magnitudes.amax(-1, keepdim=True)
    scales = shared_exponent(amax, element, "rceil").expand(*values.shape[:-1], 1)
    finite = torch.where(scales == NAN, 0.0, values)
    codes = encode(finite, scales.to(torch.int64) - BIAS, element, rounding, random.movedim(dim, -1))
    return MXTensor(codes, scales, WHOLE[name], dim)


@pytest.mark.parametrize("rounding", ["nearest_even", "half_away", "stochastic"])
@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("name", WHOLE)
def test_every_number_is_coded_as_defined(name: str, scope: str, rounding: str) -> None:
    whole = numbers()
    for x in (whole, whole[10:], whole[7:9], whole[9:10]):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            random = torch.randint(0, 1 << 32, x.shape, generator=torch.Generator().manual_seed(1))
            for dim in (0, 1):
                found = quantize_whole(x.to(dtype), name, dim, scope, rounding, random=random)
                expected = defined(x.to(dtype), name, dim, scope, rounding, random)
                assert torch.equal(found.elements, expected.elements) and torch.equal(found.scales, expected.scales)
                for to in (torch.float32, torch.bfloat16):
                    ours, right = dequantize_whole(found, to), expected.dequantize(to)
                    torch.testing.assert_close(ours, right, rtol=0, atol=0, equal_nan=True)


def test_compiled_whole() -> None:
    def work(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = quantize_whole(x, "fp8_e4m3", 1, "row")
        return made.elements, made.scales, dequantize_whole(made, torch.bfloat16)

    x = numbers()[10:]
    for found, expected in zip(torch.compile(work, fullgraph=True)(x), work(x), strict=True):
        assert torch.equal(found, expected)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ModelError, match="fp8_e3m4"):
        quantize_whole(torch.ones(2, 2), "fp8_e3m4")
