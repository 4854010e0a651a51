"""Products of tokens with their experts' matrices in block formats, against their definition in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.formats import quantize
from models.formats.exact import exact_grouped_product, exact_product
from models.formats.health import Health
from models.formats.names import FORMATS
from models.moe.products import Product, QuantisedExperts, Rows
from models.precision import ProductConfig, ProductsConfig
from models.products import Line, WholeAxes

COUNTS = torch.tensor([64, 0, 96, 32])
"""Rows of each expert, in whole blocks; one has none."""
E, N, K, M = len(COUNTS), int(COUNTS.sum()), 96, 160
KINDS = ["grouped", "loop"]


def noise(*shape: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw) * 2 ** (2 * torch.randn(shape, generator=draw))


def experts(kind: str, config: ProductsConfig) -> QuantisedExperts:
    lines = Line(((0, 0, K),), K), Line(((0, 0, M),), M)
    return QuantisedExperts(Product(kind), config, "auto", 3, "up", lines, WholeAxes(), 0, E, Health())


def run(product: QuantisedExperts | Product, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """(x, matrices, upstream) and (output, input gradient, gradient of the matrices)."""
    x, matrices = (
        noise(*shape, seed=seed).to(dtype).requires_grad_() for seed, shape in enumerate([(N, K), (E, K, M)])
    )
    upstream = noise(N, M, seed=2).to(dtype)
    y = product(x, matrices, Rows.of(COUNTS, N))
    y.backward(upstream)
    assert x.grad is not None and matrices.grad is not None
    return [x.detach(), matrices.detach(), upstream], [y.detach(), x.grad, matrices.grad]


def each(a: Tensor, b: Tensor) -> Tensor:
    """In float64, expert by expert: rows a [N, .] by matrices b [E, ., .], or sums of aᵀ b [N, .] over each expert's rows."""
    parts = a.double().split(COUNTS.tolist())
    if b.ndim == 3:
        return torch.cat([part @ matrix for part, matrix in zip(parts, b.double(), strict=True)])
    return torch.stack([part.t() @ other for part, other in zip(parts, b.double().split(COUNTS.tolist()), strict=True)])


def same(activation: str, weight: str, gradient: str) -> ProductsConfig:
    return ProductsConfig(
        ProductConfig(activation=activation, weight=weight),
        ProductConfig(gradient=gradient, weight=weight),
        ProductConfig(gradient=gradient, activation=activation),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formats", [*((name,) * 3 for name in FORMATS), ("mxint8", "nvfp4", "mxfp6_e2m3")])
def test_each_operand_is_quantised_along_its_own_sum(
    formats: tuple[str, str, str], dtype: torch.dtype, kind: str
) -> None:
    """The sum of R exact products in the result's type: of float32 within R of its roundings, of bfloat16 within one and those
    of its float32 sums."""
    (x, matrices, upstream), found = run(experts(kind, same(*formats)), dtype)
    activation, weight, gradient = formats

    def q(value: Tensor, name: str, dim: int) -> Tensor:
        # NVFP4's own values are not bfloat16's: rounded where the model is
        return quantize(value, name, dim).dequantize(dtype).double()

    operands = [
        (q(x, activation, -1), q(matrices, weight, 1)),
        (q(upstream, gradient, -1), q(matrices, weight, 2).transpose(1, 2)),
        (q(x, activation, 0), q(upstream, gradient, 0)),
    ]
    for ours, (a, b) in zip(found, operands, strict=True):
        exact, sizes = each(a, b), each(a.abs(), b.abs())
        bound = 2.0**-24 * 200 * sizes + (2.0**-8 * exact.abs() if dtype == torch.bfloat16 else 0)
        assert ours.dtype == dtype and bool(((ours - exact).abs() <= bound).all())


@pytest.mark.parametrize("kind", KINDS)
def test_operands_in_no_format_are_plain_products(kind: str) -> None:
    """All, and those of one product alone."""
    (x, matrices, upstream), plain = run(Product(kind), torch.float32)
    for ours, exact in zip(
        plain, [each(x, matrices), each(upstream, matrices.transpose(1, 2)), each(x, upstream)], strict=True
    ):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-4 * float(exact.abs().max()))
    backward = replace(same("mxfp4_e2m1", "mxfp4_e2m1", "mxfp4_e2m1"), forward=ProductConfig())
    _, found = run(experts(kind, backward), torch.float32)
    assert torch.equal(found[0], plain[0])
    assert not any(torch.equal(ours, other) for ours, other in zip(found[1:], plain[1:], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_groups_are_products_of_two(kind: str) -> None:
    """Each group of the exact product is `exact_product`'s, with its sums; compiled code has the same."""
    x, matrices, upstream = (
        t.bfloat16().float() for t in (noise(N, K, seed=0), noise(E, K, M, seed=1), noise(N, M, seed=2))
    )
    ends, scale = COUNTS.cumsum(0).int(), torch.tensor(0.375)
    for a, b in ((x, matrices), (x.t(), upstream), (upstream, matrices.transpose(1, 2))):
        found = exact_grouped_product(a, b, ends, scale, kind == "loop")
        turned = a.t() if b.ndim == 2 else a
        exact, sizes = each(turned, b), each(turned.abs(), b.abs())
        assert bool(((found - 0.375 * exact).abs() <= 2.0**-24 * 200 * sizes).all())
        torch.library.opcheck(exact_grouped_product, (a, b, ends, scale, kind == "loop"))
    first = exact_grouped_product(x, matrices, ends, None, kind == "loop")[:64]
    torch.testing.assert_close(first, exact_product(x[:64], matrices[0], None), rtol=1e-5, atol=1e-4)
    whole = torch.compile(lambda a, b: exact_grouped_product(a * 2, b, ends, None, kind == "loop"), fullgraph=True)
    assert torch.equal(whole(x, matrices), exact_grouped_product(2 * x, matrices, ends, None, kind == "loop"))
