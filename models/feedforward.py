"""The feed-forward layer: plain (GELU, ReLU, squared ReLU, PolyNorm) or gated (SwiGLU, GEGLU; Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.kernels.gated import gated
from models.kernels.poly_norm import poly_norm
from models.kernels.poly_norm import reference as poly_norm_reference
from models.kernels.squared_relu import squared_relu
from models.layers import Layers

_GATES = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh"}


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "gelu_tanh": _gelu_tanh, "relu": F.relu}


def activation_of(config: ModelConfig, layers: Layers, width: int) -> Callable[[Tensor], Tensor]:
    """The activation of a layer of `width` features, of which this rank has a share: [..., share, gated ones twice] ->
    [..., share]."""
    name, kernels = config.activation, layers.kernels
    if name in _GATES:
        return partial(gated, activation=_GATES[name], kernels=kernels)
    if name == "polynorm":
        return PolyNorm(layers, width, config.norm_eps)
    return partial(squared_relu, kernels=kernels) if name == "squared_relu" else _ELEMENTWISE[name]


def residual_std(config: ModelConfig) -> float:
    """Standard deviation of the initial weights of a projection into the residual stream."""
    return config.matrix_std / (math.sqrt(config.branches) if config.scaled_residual_init else 1.0)


class PolyNorm(nn.Module):
    """Normed powers 1 to 3 with learned weights, a third each at first, and a bias (PolyCom, arXiv 2411.03884).

    Means are over all `width` features: where the tensor axis cuts them, sums go over it.
    """

    def __init__(self, layers: Layers, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps, self._layers = width, eps, layers
        powers = poly_norm_reference.POWERS
        weight = nn.Parameter(torch.empty(powers, dtype=layers.dtype))
        self.weight = layers.replicated(weight, constant=1 / powers)
        self.bias = layers.replicated(nn.Parameter(torch.empty(1, dtype=layers.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., share of width] -> the same."""
        layers = self._layers
        weight, bias = layers.use_in_heads(self.weight), layers.use_in_heads(self.bias)
        if layers.degree == 1:
            return poly_norm(x, weight, bias, self.eps, layers.kernels)
        return poly_norm_reference.poly_norm(x, weight, bias, self.eps, self._mean)

    def _mean(self, squares: Tensor) -> Tensor:
        return self._layers.sum_over_tensor(squares.sum(-1, keepdim=True)) / self.width


class FeedForward(nn.Module):
    """[S, B, H] -> [S, B, H] through `width` features; gated ones fuse gate and up in one product."""

    def __init__(self, config: ModelConfig, layers: Layers, width: int) -> None:
        super().__init__()
        parts = (width,) * (2 if config.gated else 1)
        self.up = layers.column("up", config.hidden_size, parts, bias=config.bias, std=config.matrix_std)
        self.down = layers.row("down", width, config.hidden_size, bias=config.bias, std=residual_std(config))
        self.activation = activation_of(config, layers, width)

    def forward(self, x: Tensor, first_sample: int | Tensor = 0) -> Tensor:
        return self.down(self.activation(self.up(x, first_sample)), first_sample)
