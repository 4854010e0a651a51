"""The feed-forward layer: plain (GELU, ReLU, squared ReLU) or gated (SwiGLU, GEGLU; Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.functions import gated
from models.layers import Layers


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _squared_relu(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "squared_relu": _squared_relu,
    "swiglu": partial(gated, activation="silu"),
    "geglu": partial(gated, activation="gelu"),
    "geglu_tanh": partial(gated, activation="gelu_tanh"),
}


def residual_std(config: ModelConfig) -> float:
    """Standard deviation of the initial weights of a projection into the residual stream."""
    return config.init_std / (math.sqrt(config.branches) if config.scaled_residual_init else 1.0)


class FeedForward(nn.Module):
    """[S, B, H] -> [S, B, H] through `width` features; gated ones fuse gate and up in one product."""

    def __init__(self, config: ModelConfig, layers: Layers, width: int) -> None:
        super().__init__()
        parts = (width,) * (2 if config.gated else 1)
        self.up = layers.column("up", config.hidden_size, parts, bias=config.bias, std=config.init_std)
        self.down = layers.row("down", width, config.hidden_size, bias=config.bias, std=residual_std(config))
        self.activation = ACTIVATION_FUNCTIONS[config.activation]

    def forward(self, x: Tensor, first_sample: int | Tensor = 0) -> Tensor:
        return self.down(self.activation(self.up(x, first_sample)), first_sample)
