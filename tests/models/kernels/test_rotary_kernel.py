"""Rotary positions: interpreted Triton against torch, in place, back, and with positions of each sample's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.attention import rotary_table
from models.config import RopeScaling
from models.kernels.rotary import rotary, rotary_, rotary_backward, rotate, split_and_rotate
from models.kernels.rotary.triton import turn
from tests.models.kernels.harness import Guarded, no_worse_than_torch, noise, same_twice

GPU = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])
everywhere = pytest.mark.parametrize("device", ["cpu", GPU])


def table(length: int, batch: int, width: int, dtype: torch.dtype, device: str = "cpu", own: bool = False) -> Any:
    """Cosine and sine [S, 1, 1, D], or of positions of each sample's own, [S, B, 1, D]."""
    cosine, sine = rotary_table(((0, length),), width, 100.0, RopeScaling(), torch.device(device), dtype)
    if not own:
        return cosine, sine
    places = torch.arange(length * batch, device=device).view(length, batch) * 7 % length
    return cosine[places, 0], sine[places, 0]


def run(qkv: Tensor, heads: int, kv_heads: int, angles: Any, kernels: str) -> list[Tensor]:
    """Query, key, value, and the gradient by upstream ones that differ from element to element."""
    leaf = qkv.detach().clone().requires_grad_()
    parts = split_and_rotate(leaf * 1, heads, kv_heads, *angles, kernels)
    upstream = [noise(*part.shape, seed=3 + i, dtype=part.dtype).to(part.device) for i, part in enumerate(parts)]
    return [*(part.detach() for part in parts), *torch.autograd.grad(parts, leaf, upstream)]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 5),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 6),
    half=st.integers(1, 20),
    own=st.booleans(),
)
def test_any_number_of_heads(length: int, batch: int, kv_heads: int, group: int, half: int, own: bool) -> None:
    heads = kv_heads * group
    qkv = noise(length, batch, (heads + 2 * kv_heads) * 2 * half)
    angles = table(length, batch, 2 * half, torch.float32, own=own)
    found = run(qkv, heads, kv_heads, angles, "triton")
    for ours, theirs in zip(found, run(qkv, heads, kv_heads, angles, "reference"), strict=True):
        torch.testing.assert_close(ours, theirs)


@everywhere
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_no_worse_than_torch(dtype: torch.dtype, own: bool, device: str) -> None:
    qkv = noise(9, 2, 8 * 32, dtype=dtype).to(device)
    angles = table(9, 2, 32, dtype, device, own)
    found, torchs = run(qkv, 4, 2, angles, "triton"), run(qkv, 4, 2, angles, "reference")
    leaf = qkv.double().requires_grad_()
    parts = split_and_rotate(leaf * 1, 4, 2, *(angle.double() for angle in angles), "reference")
    upstream = [noise(*part.shape, seed=3 + i, dtype=dtype).to(part) for i, part in enumerate(parts)]
    exact = [*parts, *torch.autograd.grad(parts, leaf, upstream)]
    for ours, plain, right in zip(found, torchs, exact, strict=True):
        assert ours.dtype == dtype
        no_worse_than_torch(ours, plain, right.detach())


def test_gradients_are_those_of_differences() -> None:
    angles = table(2, 1, 6, torch.float64)
    qkv = noise(2, 1, 24, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: split_and_rotate(x * 1, 2, 1, *angles, "triton"), qkv)
    heads = noise(2, 1, 2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, *angles, "triton"), heads)


@everywhere
def test_query_and_key_are_turned_where_they_lie(device: str) -> None:
    qkv = noise(5, 2, 8 * 16).to(device)
    before, angles = qkv.clone(), table(5, 2, 16, torch.float32, device)
    query, key, value = split_and_rotate(qkv, 4, 2, *angles, "triton")
    assert {part.untyped_storage().data_ptr() for part in (query, key, value)} == {qkv.untyped_storage().data_ptr()}
    assert torch.equal(qkv[..., 6 * 16 :], before[..., 6 * 16 :])
    torch.testing.assert_close(
        qkv[..., : 4 * 16].unflatten(-1, (4, 16)),
        rotate(before.unflatten(-1, (8, 16))[..., :4, :], *angles, "reference"),
    )


def test_who_wants_what_was_there_is_refused() -> None:
    qkv = noise(3, 1, 4 * 8).requires_grad_() * 1
    squared = qkv.square()
    split_and_rotate(qkv, 2, 1, *table(3, 1, 8, torch.float32), "triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_heads_may_lie_anywhere() -> None:
    angles = table(4, 2, 12, torch.float32)
    fused = noise(4, 2, 5, 12)
    for x in (
        fused[..., 1:4, :],
        fused.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        fused.transpose(0, 1).contiguous().transpose(0, 1),
    ):
        torch.testing.assert_close(rotate(x, *angles, "triton"), rotate(x, *angles, "reference"))


def test_nothing_is_written_beside_the_target() -> None:
    guarded = Guarded((3, 2, 5, 14), torch.bfloat16)
    turn(noise(3, 2, 5, 14, dtype=torch.bfloat16), guarded.tensor, *table(3, 2, 14, torch.bfloat16), True)
    guarded.check()
    assert guarded.tensor.abs().sum() > 0


@everywhere
def test_two_runs_and_rows_alone_give_the_same_bits(device: str) -> None:
    qkv, angles = noise(6, 2, 8 * 16, dtype=torch.bfloat16).to(device), table(6, 2, 16, torch.bfloat16, device)
    same_twice(lambda: run(qkv, 4, 2, angles, "triton"))
    query, *_ = split_and_rotate(qkv.clone(), 4, 2, *angles, "triton")
    alone, *_ = split_and_rotate(qkv[2:3, :1].clone(), 4, 2, *(angle[2:3] for angle in angles), "triton")
    assert torch.equal(query[2:3, :1], alone)


def test_a_turn_back_undoes_a_turn() -> None:
    x, angles = noise(4, 1, 3, 10, dtype=torch.float64), table(4, 1, 10, torch.float64)
    torch.testing.assert_close(rotary(rotary(x, *angles, 2, False), *angles, 2, True), x)


def test_operators_are_well_formed() -> None:
    x, angles = noise(3, 2, 4, 8), table(3, 2, 8, torch.float32)
    torch.library.opcheck(rotary, (x.clone().requires_grad_(), *angles, 3, False))
    torch.library.opcheck(rotary_, (x.clone(), *angles, 3))
    torch.library.opcheck(rotary_backward, (x[..., :2, :], x[..., 2:3, :], x[..., 3:, :], *angles))


def test_it_is_one_graph_under_a_compiler() -> None:
    qkv, angles = noise(3, 2, 4 * 8), table(3, 2, 8, torch.float32)
    upstream = noise(3, 2, 2, 8, seed=4)
    found = []
    for call in (split_and_rotate, torch.compile(split_and_rotate, backend="aot_eager", fullgraph=True)):
        leaf = qkv.clone().requires_grad_()
        parts = call(leaf * 1, 2, 1, *angles, "triton")
        found.append([*parts, *torch.autograd.grad(parts[0], leaf, upstream)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
