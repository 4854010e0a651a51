"""Jobs of test_products_sharded.py: one quantised layer on a rank's share, beside the same layer whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.core import Spans, take_spans
from models.layers import Layers, PlainLayers
from models.moe.config import MoEConfig
from models.moe.layer import MixtureOfExperts
from models.parameters import declaration, initialise
from models.precision import ProductsConfig
from models.random import Clock, fill_normal
from parallel.config import ParallelConfig
from parallel.layers import layers_for
from parallel.mesh import Mesh

SEED, SAMPLES, FIRST = 7, 2, 5
Build = Callable[[Layers], nn.Module]


def layer(
    parallel: ParallelConfig, products: ProductsConfig, kind: str, inputs: int, parts: tuple[int, ...], length: int
) -> dict[str, Any]:
    """The largest differences between the layer on this mesh and in one process, relative to the largest value: of its output,
    its input gradient and its weight gradient."""
    mesh = Mesh(parallel, torch.device("cpu"))

    def build(layers: Layers) -> nn.Module:
        within = layers.within("layers.0")
        if kind == "row":
            return within.row("down", inputs, sum(parts), bias=True, std=0.1)
        return within.column("up", inputs, parts, bias=True, std=0.1)

    ours, whole = (
        layers_for(mesh, torch.float32, Clock(SEED), products=products),
        PlainLayers(clock=Clock(SEED), products=products),
    )
    x, upstream = (_noise(name, length, width) for name, width in (("x", inputs), ("gradient", sum(parts))))
    expected = _run(build(whole), x, upstream)
    in_heads = ours.spans_in_heads(length // parallel.context)
    of_rows = ours.spans(length // parallel.context // (parallel.tensor if parallel.sequence_parallel else 1))
    built = build(ours)
    features = _features(built, 1 if kind == "row" else 0, mesh)
    if kind == "row":
        x_spans, y_spans, x_features, y_features = in_heads, of_rows, features, None
    else:
        x_spans, y_spans, x_features, y_features = of_rows, in_heads, None, features
    found = _run(built, _cut(x, x_spans, x_features), _cut(upstream, y_spans, y_features))
    wanted = (
        _cut(expected[0], y_spans, y_features),
        _cut(expected[1], x_spans, x_features),
        expected[2] if features is None else expected[2].index_select(1 if kind == "row" else 0, features),
    )
    if parallel.context > 1:
        torch.distributed.all_reduce(found[2], group=mesh.context_group)
    mesh.close()
    return {
        name: float((one - other).abs().max() / other.abs().max())
        for name, one, other in zip(("output", "input", "weight"), found, wanted, strict=True)
    }


def _run(module: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    for name, parameter in module.named_parameters():
        initialise(parameter.data, name, SEED, declaration(parameter), (0,) * parameter.dim())
    x = x.clone().requires_grad_()
    y = module(x, FIRST)
    y.backward(upstream)
    assert x.grad is not None and module.weight.grad is not None
    return y.detach(), x.grad, module.weight.grad


def _noise(name: str, length: int, width: int) -> Tensor:
    x = torch.empty(length, SAMPLES, width)
    fill_normal(x, hash_of(name), tuple(x.shape), (0, 0, 0), 1.0)
    return x * torch.linspace(-3, 3, width).exp2()  # blocks of different magnitudes


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def _features(module: nn.Module, dim: int, mesh: Mesh) -> Tensor | None:
    declared = declaration(module.weight)
    if mesh.config.tensor == 1:
        return None
    assert declared.dim == dim
    return torch.cat([torch.arange(there, there + count) for _, there, count in declared.slabs()])


def _cut(x: Tensor, spans: Spans, features: Tensor | None) -> Tensor:
    rows = take_spans(x, spans, 0)
    return (rows if features is None else rows.index_select(-1, features)).contiguous()


def mixture(parallel: ParallelConfig, products: ProductsConfig) -> dict[str, float]:
    """The largest differences, relative to the largest value, between a mixture layer whose experts are shared out and the same
    in one process: of this rank's output and input gradient, and of its experts' gradients over all ranks' tokens."""
    mesh = Mesh(parallel, torch.device("cpu"))
    model = ModelConfig(hidden_size=64, layers=1, heads=2, moe=MoEConfig(experts=4, expert_size=128, top_k=2))
    inputs = [(_noise(f"x{data}", 64, 64) / 8, _noise(f"gradient{data}", 64, 64)) for data in range(parallel.data)]
    firsts = [FIRST + data * SAMPLES for data in range(parallel.data)]

    def run(layers: Layers, x: Tensor, upstream: Tensor, first: int) -> list[Tensor]:
        layer = MixtureOfExperts(model, layers.within("layers.0").within("feed_forward"), 0)
        for name, parameter in layer.named_parameters():
            initialise(parameter.data, name, SEED, declaration(parameter), (0,) * parameter.dim())
        layers.routing.start(1.0)
        x = x.clone().requires_grad_()
        y = layer(x, first)
        y.backward(upstream)
        assert x.grad is not None
        return [y.detach(), x.grad, *(layer.experts.get_submodule(name).weight.grad for name in ("up", "down"))]

    rank = mesh.place.data
    found = run(layers_for(mesh, torch.float32, Clock(SEED), products=products), *inputs[rank], firsts[rank])
    alone = [
        run(PlainLayers(clock=Clock(SEED), products=products), *pair, first)
        for pair, first in zip(inputs, firsts, strict=True)
    ]
    experts = []
    for which in (2, 3):
        held = found[which].shape[0]
        start = mesh.place.expert * held
        experts.append(torch.stack([one[which][start : start + held] for one in alone]).sum(0))
    mesh.close()
    return {
        name: float((one - other).abs().max() / other.abs().max())
        for name, one, other in zip(("output", "input", "up", "down"), found, [*alone[rank][:2], *experts], strict=True)
    }
