"""Gradients that are written out, against finite differences and against autograd's own composition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import rotary_table
from models.config import RopeScaling
from models.kernels.gated import gated
from models.kernels.rms_norm import rms_norm
from models.kernels.rotary import rotate, split_and_rotate

S, B, HEADS, KV_HEADS, D = 3, 2, 4, 2, 6


def table(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return rotary_table(((0, S),), D, 100.0, RopeScaling(), torch.device("cpu"), dtype)


def plain_gated(x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return activation(gate) * up


def plain_rotation(x: Tensor) -> Tensor:
    """Pairs as complex numbers, times exp(i position theta^(-2i/D))."""
    position = torch.arange(S, dtype=torch.float64)[:, None, None, None]
    angle = position * 100.0 ** -(torch.arange(0, D, 2, dtype=torch.float64) / D)
    half = D // 2
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.exp(1j * angle)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def plain_split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = qkv.unflatten(-1, (-1, D)).split([HEADS, KV_HEADS, KV_HEADS], dim=-2)
    return plain_rotation(query), plain_rotation(key), value


def split_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return split_and_rotate(qkv, HEADS, KV_HEADS, *table(qkv.dtype))


FUNCTIONS = {
    "rms_norm": (
        lambda x, weight: rms_norm(x, weight, 1e-5),
        lambda x, weight: F.rms_norm(x, (8,), weight, 1e-5),
        [(S, B, 8), (8,)],
    ),
    "swiglu": (lambda x: gated(x, "silu"), lambda x: plain_gated(x, F.silu), [(S, B, 8)]),
    "geglu": (lambda x: gated(x, "gelu"), lambda x: plain_gated(x, F.gelu), [(S, B, 8)]),
    "geglu_tanh": (
        lambda x: gated(x, "gelu_tanh"),
        lambda x: plain_gated(x, lambda y: F.gelu(y, approximate="tanh")),
        [(S, B, 8)],
    ),
    "rotate": (lambda x: rotate(x, *table(x.dtype)), plain_rotation, [(S, B, HEADS, D)]),
    "split_and_rotate": (split_of, plain_split, [(S, B, (HEADS + 2 * KV_HEADS) * D)]),
}


def made(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def outputs_and_gradients(function: Callable, inputs: list[Tensor]) -> list[Tensor]:
    found = function(*inputs)
    outputs = list(found) if isinstance(found, tuple) else [found]
    weights = [torch.linspace(-1, 2, part.numel(), dtype=part.dtype).view_as(part) for part in outputs]
    total = sum(((part * weight).sum() for part, weight in zip(outputs, weights, strict=True)), torch.zeros(()))
    return [*(part.detach() for part in outputs), *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_are_finite_differences(name: str) -> None:
    function, _, shapes = FUNCTIONS[name]
    assert torch.autograd.gradcheck(function, tuple(made(shapes, torch.float64)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_those_of_autograd(name: str, dtype: torch.dtype) -> None:
    function, plain, shapes = FUNCTIONS[name]
    ours = outputs_and_gradients(function, made(shapes, dtype))
    exact = outputs_and_gradients(plain, made(shapes, torch.float64))
    rounding = 16 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-14
    for found, expected in zip(ours, exact, strict=True):
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= rounding * expected.abs().max()


@pytest.mark.parametrize("name", ["rms_norm", "swiglu", "split_and_rotate"])
def test_one_input_of_several_may_need_no_gradient(name: str) -> None:
    function, _, shapes = FUNCTIONS[name]
    inputs = made(shapes, torch.float32)
    found = function(*(value.detach() for value in inputs[:1]), *inputs[1:])
    outputs = found if isinstance(found, tuple) else (found,)
    assert all(part.requires_grad == (len(inputs) > 1) for part in outputs)


def test_rms_norm_keeps_float32_under_autocast() -> None:
    x, weight = made([(S, B, 8), (8,)], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = rms_norm(x, weight, 1e-5)
    assert torch.equal(found, rms_norm(x, weight, 1e-5))
