"""Rotations: every implementation gives the bits of plain torch, and plain torch the product with Sylvester's matrix."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.kernels.hadamard import hadamard_operator, random_signs, rotate
from tests.models.kernels.harness import Guarded, noise, same_twice

IMPLEMENTATIONS = ("cpp", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def matrix(size: int) -> Tensor:
    """Sylvester's construction, orthonormal: float64."""
    found = torch.ones(1, 1, dtype=torch.float64)
    while len(found) < size:
        found = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), found)
    return found / size**0.5


@pytest.mark.parametrize("size", [2, 16, 64, 1024])
def test_the_reference_is_the_product_with_the_matrix(size: int) -> None:
    x, signs = noise(3, 2048, 2), random_signs(5, size)
    expected = ((x.double().movedim(1, -1).unflatten(-1, (-1, size)) * signs) @ matrix(size)).flatten(-2).movedim(-1, 1)
    torch.testing.assert_close(rotate(x, 1, size, signs, "reference").double(), expected, rtol=1e-6, atol=2e-6)
    assert set(signs.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("shape", "dim", "size"),
    [
        ((5, 128), 1, 64),
        ((128, 5), 0, 64),
        ((2, 64, 19), 1, 16),
        ((3, 7, 32), 2, 32),
        ((64,), 0, 2),
        ((2, 1024), 1, 1024),
        ((3, 20), 1, 4),
        ((5, 24), 1, 8),
        ((24, 37), 0, 8),
        ((7, 256), 1, 128),
        ((2, 256, 33), 1, 256),
        ((64, 48), 0, 64),
    ],
)
def test_every_shape_and_dtype_has_the_references_bits(
    kernels: str, shape: tuple[int, ...], dim: int, size: int
) -> None:
    for dtype in DTYPES:
        for signs in (None, random_signs(9, size)):
            x = noise(*shape, dtype=dtype, scale=5.0)
            found, expected = rotate(x, dim, size, signs, kernels), rotate(x, dim, size, signs, "reference")
            assert found.dtype == torch.float32 and found.movedim(dim, -1).is_contiguous()
            assert torch.equal(found, expected), (dtype, signs is None)


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_strides_and_special_numbers(kernels: str, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 5)) * 16, data.draw(st.integers(0, 5)) * 16
    whole = noise(rows + 2, columns + 9, seed=data.draw(st.integers(0, 9)))
    whole[::7, ::5] = torch.tensor(data.draw(st.sampled_from([torch.nan, torch.inf, 0.0, -0.0, 1e-40])))
    x = whole[1 : 1 + rows, (start := data.draw(st.integers(0, 9))) : start + columns]
    if data.draw(st.booleans()):
        x = x.t().contiguous().t()
    before, dim = whole.clone(), data.draw(st.integers(0, 1))
    found, expected = rotate(x, dim, 16, None, kernels), rotate(x, dim, 16, None, "reference")
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(whole.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_nothing_is_written_beyond_and_runs_are_alike(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.kernels.hadamard.cpp as cpp
    import models.kernels.hadamard.triton as interpreted

    module = {"cpp": cpp, "triton": interpreted}[kernels]
    for shape, dim in (((17, 64), 1), ((64, 17), 0)):
        x = noise(*shape)
        guard = Guarded(x.movedim(dim, -1).shape, torch.float32)
        with monkeypatch.context() as patch:
            told = {"float32": torch.float32, "get_num_threads": lambda: 2}
            patch.setattr(module, "torch", SimpleNamespace(empty=lambda *_, guard=guard, **__: guard.tensor, **told))
            found = module.rotate(x, dim, 64, None)
        assert found is guard.tensor
        guard.check()
        assert torch.equal(found.movedim(-1, dim), rotate(x, dim, 64, None, "reference"))
        same_twice(lambda x=x, dim=dim: [rotate(x, dim, 64, None, kernels).contiguous()])


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_gradients_go_back_through_the_matrix(kernels: str) -> None:
    signs, upstream = random_signs(2, 16), noise(32, 3, seed=7)
    found = []
    for choice in (kernels, "reference"):
        x = noise(32, 3).requires_grad_()
        (rotate(x, 0, 16, signs, choice) * upstream).sum().backward()
        assert x.grad is not None
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_the_operator_is_right_for_compilers(kernels: str) -> None:
    x = noise(32, 3).requires_grad_()
    torch.library.opcheck(hadamard_operator, (x, 0, 16, random_signs(1, 16), kernels))
    if kernels == "triton":
        work = torch.compile(lambda x: rotate(x, 0, 16, None, kernels) + 1, fullgraph=True, backend="aot_eager")
        assert torch.equal(work(x), rotate(x, 0, 16, None, "reference") + 1)


@pytest.mark.parametrize(
    ("size", "message"), [(48, "power of two from 2 to 1024"), (2048, "2048"), (64, "does not divide")]
)
def test_mistakes_are_told(size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        rotate(torch.ones(96, 3), 0, size)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_have_the_references_bits() -> None:
    for shape, dim, size in (((512, 4096), 1, 64), ((4096, 512), 0, 64), ((33, 1024), 1, 1024), ((64, 3), 0, 16)):
        for dtype in DTYPES:
            x, signs = noise(*shape, dtype=dtype), random_signs(3, size)
            found = rotate(x.cuda(), dim, size, signs.cuda(), "triton")
            assert torch.equal(found.cpu(), rotate(x, dim, size, signs, "reference"))
