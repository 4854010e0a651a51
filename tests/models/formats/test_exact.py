"""Products in float32 of operands that bfloat16 holds: no operand is rounded, sums are float32's."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from models.formats import quantize
from models.formats.exact import exact_product, exact_values
from models.formats.names import FORMATS
from models.formats.operand import Operand
from models.formats.whole import WHOLE, quantize_whole

EVERY = [*FORMATS, *WHOLE]


def operand_of(name: str, *shape: int, seed: int = 0, spread: float = 4.0) -> Operand:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=draw) * 2 ** (spread * torch.randn(shape, generator=draw))
    return Operand.of(quantize_whole(x, name) if name in WHOLE else quantize(x, name))


@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_holds_what_is_multiplied(name: str) -> None:
    """Of NVFP4 without the scale of the tensor, with which it does not."""
    found = operand_of(name, 256, 256)
    parts = exact_values(found, found, torch.float32, "auto")
    assert parts is not None
    values, _, scale = parts
    assert torch.equal(values.to(torch.bfloat16).to(torch.float32), values)
    whole = found.values(torch.float32)
    if name == "nvfp4":
        assert scale is not None and torch.equal(scale, found.tensors[2] ** 2)
        assert not torch.equal(whole.to(torch.bfloat16).to(torch.float32), whole)
        torch.testing.assert_close(values * found.tensors[2], whole, rtol=2.0**-22, atol=0)
    else:
        assert scale is None and torch.equal(values, whole)


def test_plain_operands_and_other_dtypes_are_not_taken() -> None:
    found, plain = operand_of("mxfp8_e4m3", 64, 64), Operand((torch.ones(64, 64),))
    for operands in ((found, plain), (plain, found), (plain, plain)):
        assert exact_values(*operands, torch.float32, "auto") is None
    assert exact_values(found, found, torch.bfloat16, "auto") is None


def test_the_scale_of_a_tensor_comes_last() -> None:
    """Of two in NVFP4, and of one beside another format."""
    a, b = operand_of("nvfp4", 64, 128), operand_of("nvfp4", 96, 128, seed=1)
    for right in (b, operand_of("mxfp4_e2m1", 96, 128, seed=1)):
        parts = exact_values(a, right, torch.float32, "auto")
        assert parts is not None
        found = exact_product(parts[0], parts[1].t(), parts[2])
        left, exact = a.values(torch.float32).double(), right.values(torch.float32).double()
        bound = 132 * 2.0**-24 * (left.abs() @ exact.t().abs())  # 128 terms, and what scales are rounded
        assert bool(((found - left @ exact.t()).abs() <= bound).all())


@pytest.mark.parametrize(("left", "right"), [*product(["mxfp8_e4m3", "mxint8"], ["mxfp6_e2m3", "mxint8"])])
@pytest.mark.parametrize("layout", ["nn", "nt", "tn"])
def test_sums_are_as_good_as_those_of_float32(left: str, right: str, layout: str) -> None:
    """Against float64: within the bound of a sum of R exact terms in float32, which bfloat16's own result misses by far."""
    a, b = operand_of(left, 192, 512).values(torch.float32), operand_of(right, 512, 96, seed=1).values(torch.float32)
    a = a.t().contiguous().t() if layout == "tn" else a
    b = b.t().contiguous().t() if layout == "nt" else b
    found, exact = exact_product(a, b, None), a.double() @ b.double()
    bound = 512 * 2.0**-24 * (a.double().abs() @ b.double().abs())
    assert found.dtype == torch.float32
    assert bool(((found - exact).abs() <= bound).all())
    narrow = a.bfloat16() @ b.bfloat16()
    assert bool(((narrow - exact).abs() > bound).any()), "the bound tells them apart"


def test_the_setting_is_put_back_and_acts_on_nothing_else() -> None:
    settings = torch.backends.mkldnn.matmul
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    before, plain = settings.fp32_precision, x @ x
    exact_product(x, x, None)
    assert settings.fp32_precision == before
    assert torch.equal(x @ x, plain)
    with pytest.raises(RuntimeError):
        exact_product(x, x[:3], None)
    assert settings.fp32_precision == before


def test_operator() -> None:
    a, b = torch.ones(4, 32), torch.ones(32, 8)
    torch.library.opcheck(exact_product, (a, b, None))
    torch.library.opcheck(exact_product, (a.t().contiguous().t(), b.t().contiguous().t(), torch.tensor(3.0)))
    whole = torch.compile(lambda a, b: exact_product(a * 2, b, torch.tensor(0.5)) + 1, fullgraph=True)
    assert torch.equal(whole(a, b), torch.full((4, 8), 33.0))
