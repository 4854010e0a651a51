"""Products in float32 of operands that bfloat16 holds: no operand is rounded, sums are float32's."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from models.formats import quantize
from models.formats.exact import carrier, exact_in_bfloat16, exact_product
from models.formats.names import FORMATS
from models.formats.operand import Operand
from models.formats.whole import WHOLE, quantize_whole

EXACT = [name for name in (*FORMATS, *WHOLE) if name != "nvfp4"]


def operand_of(name: str, *shape: int, seed: int = 0, spread: float = 4.0) -> Operand:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * 2 ** (spread * torch.randn(shape, generator=draw))
    return Operand.of(quantize_whole(x, name) if name in WHOLE else quantize(x, name))


@pytest.mark.parametrize("name", EXACT)
def test_bfloat16_holds_what_is_multiplied(name: str) -> None:
    found = operand_of(name, 256, 256)
    assert exact_in_bfloat16(found)
    values = found.values(torch.float32)
    assert torch.equal(values.to(torch.bfloat16).to(torch.float32), values)
    assert torch.equal(found.values(torch.bfloat16).to(torch.float32), values)


def test_nvfp4_and_plain_tensors_are_not_taken() -> None:
    """Their values are rounded in bfloat16."""
    found = operand_of("nvfp4", 64, 64)
    values = found.values(torch.float32)
    assert not exact_in_bfloat16(found)
    assert not torch.equal(values.to(torch.bfloat16).to(torch.float32), values)
    assert not exact_in_bfloat16(Operand((torch.ones(2, 2),)))


@pytest.mark.parametrize(("left", "right"), [*product(["mxfp8_e4m3", "mxint8"], ["mxfp6_e2m3", "mxint8"])])
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_sums_are_as_good_as_those_of_float32(left: str, right: str, layout: str) -> None:
    """Against float64: within the bound of a sum of R exact terms in float32, which bfloat16's own result misses by far."""
    a, b = operand_of(left, 192, 512).values(torch.float32), operand_of(right, 512, 96, seed=1).values(torch.float32)
    a = a.t().contiguous().t() if layout == "tn" else a
    b = b.t().contiguous().t() if layout == "nt" else b
    found, exact = exact_product(a, b), a.double() @ b.double()
    bound = 512 * 2.0**-24 * (a.double().abs() @ b.double().abs())
    assert found.dtype == torch.float32
    assert bool(((found - exact).abs() <= bound).all())
    narrow = a.bfloat16() @ b.bfloat16()
    assert bool(((narrow - exact).abs() > bound).any()), "the bound tells them apart"


def test_the_setting_is_put_back_and_acts_on_nothing_else() -> None:
    settings = torch.backends.mkldnn.matmul
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    before, plain = settings.fp32_precision, x @ x
    exact_product(x, x)
    assert settings.fp32_precision == before
    assert torch.equal(x @ x, plain)
    with pytest.raises(RuntimeError):
        exact_product(x, x[:3])
    assert settings.fp32_precision == before


def test_operator() -> None:
    a, b = torch.ones(4, 32), torch.ones(32, 8)
    torch.library.opcheck(exact_product, (a, b))
    torch.library.opcheck(exact_product, (a.t().contiguous().t(), b.t().contiguous().t()))
    assert carrier(torch.device("cpu")) == torch.float32 and carrier(torch.device("cuda")) == torch.bfloat16
    whole = torch.compile(lambda a, b: exact_product(a * 2, b) + 1, fullgraph=True)
    assert torch.equal(whole(a, b), torch.full((4, 8), 65.0))
