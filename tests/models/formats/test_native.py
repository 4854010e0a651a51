"""Products in a GPU's own units, as far as no such GPU is needed: the order of scales, shapes and types on fake tensors, and
when they are taken."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models.formats import quantize
from models.formats.native import _has_units, multiply, scaled_product, swizzle
from models.formats.operand import Operand
from models.formats.whole import quantize_whole


def test_scales_stand_where_tensor_cores_look_for_them() -> None:
    rows, columns = 200, 6
    scales = (torch.arange(rows * columns) % 251 + 1).to(torch.uint8).view(rows, columns)
    found = swizzle(scales)
    assert found.numel() == 256 * 8
    for row in (0, 1, 31, 32, 95, 127, 128, 199):
        for column in range(columns):
            tile = (row // 128) * 2 + column // 4
            place = tile * 512 + (row % 32) * 16 + (row % 128) // 32 * 4 + column % 4
            assert found[place] == scales[row, column]
    assert int(found.long().sum()) == int(scales.long().sum()), "the rest is zero"


def operand_of(name: str, *shape: int, dim: int = -1) -> Operand:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return Operand.of(quantize_whole(x, name, dim, "row") if name.startswith("fp8") else quantize(x, name, dim))


@pytest.mark.parametrize("name", ["mxfp8_e4m3", "mxfp8_e5m2", "nvfp4", "fp8_e4m3"])
def test_what_scaled_products_are_asked_for_has_the_right_shapes(name: str) -> None:
    """torch checks shapes, types and strides of a CUDA tensor that is not there."""
    other = "mxfp8_e4m3" if name == "mxfp8_e5m2" else name
    x, weight = operand_of(name, 64, 2, 128), operand_of(other, 48, 128)
    rows, columns = operand_of(name, 64, 2, 48, dim=0), operand_of(other, 64, 2, 128, dim=0)
    few = operand_of(name, 5, 128)
    with FakeTensorMode():

        def there(found: Operand) -> Operand:
            return Operand(
                tuple(torch.empty(p.shape, dtype=p.dtype, device="cuda") for p in found.tensors), found.layout
            )

        y = scaled_product(there(x), there(weight))
        assert y is not None and y.shape == (64, 2, 48) and y.dtype == torch.bfloat16
        y = scaled_product(there(rows).tokens_last(), there(columns).tokens_last())
        assert y is not None and y.shape == (48, 128)
        assert scaled_product(there(few), there(weight)) is None, "5 rows are no multiple of 16"


def test_matrices_of_tokens_are_the_operands() -> None:
    """What the weight gradient multiplies natively stands for what it multiplies elsewhere."""
    x = operand_of("mxfp8_e4m3", 64, 3, 16, dim=0)
    expected = x.values(torch.float32).movedim(2, 0).movedim(2, 1).flatten(1)  # [N, B S]
    assert torch.equal(x.tokens_last().values(torch.float32), expected)


@pytest.mark.parametrize(
    ("name", "other", "capability", "taken"),
    [
        ("mxfp8_e4m3", "mxfp8_e4m3", (9, 0), False),
        ("mxfp8_e4m3", "mxfp8_e5m2", (10, 0), True),
        ("mxfp8_e5m2", "mxfp8_e5m2", (10, 0), False),
        ("mxfp6_e3m2", "mxfp6_e3m2", (10, 0), False),
        ("nvfp4", "nvfp4", (10, 0), True),
        ("nvfp4", "nvfp4", (9, 0), False),
        ("fp8_e4m3", "fp8_e5m2", (9, 0), True),
        ("fp8_e4m3", "fp8_e4m3", (8, 0), False),
    ],
)
def test_units_are_known_by_the_gpu(name: str, other: str, capability: tuple[int, int], taken: bool) -> None:
    assert _has_units(name, other, capability) == taken


def test_on_cpu_nothing_is_taken() -> None:
    assert multiply(operand_of("mxfp8_e4m3", 32, 64), operand_of("mxfp8_e4m3", 32, 64), torch.bfloat16) is None
