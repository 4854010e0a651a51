"""The experts' matrices and their products: tokens sorted by expert go in, each through its expert's feed-forward.

The matrices of all experts of a rank lie one below the other in one parameter, so that a grouped product reads them as they
are, sharding cuts them anywhere, and a checkpoint holds one tensor a layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.feedforward import activation_of, residual_std
from models.layers import Layers
from models.moe.products import Product, QuantisedExperts, Rows
from models.parameters import Declaration, declare_experts
from models.products import Line


class _Up(nn.Module):
    """H to F of every expert (gate rows, then up rows, of one expert after the other): weight [held * rows, H]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        experts, rows = config.moe.experts, (config.expert_width,) * (2 if config.gated else 1)
        self.held = layers.experts.share(experts)
        place = {"experts": experts, "first": layers.experts.rank * self.held, "held": self.held}
        cut = {"degree": layers.degree, "rank": layers.rank}
        count = self.held * sum(rows) // layers.degree
        self.weight = nn.Parameter(torch.empty(count, config.hidden_size, dtype=layers.dtype))
        declare_experts(self.weight, rows=rows, columns=config.hidden_size, std=config.matrix_std, **place, **cut)
        self.bias: nn.Parameter | None = None
        if config.bias:
            self.bias = nn.Parameter(torch.empty(count, dtype=layers.dtype))
            declare_experts(self.bias, rows=rows, **place, **cut)
        outputs = Line.of(Declaration((sum(rows),), 0, rows, layers.degree, layers.rank, 0.0), 0)
        self._product = _product(config, layers, "up", (_line(config.hidden_size), outputs))

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        y = self._product(x, self.weight.view(self.held, -1, x.shape[-1]).transpose(1, 2), rows)
        return y if self.bias is None else y + self.bias.view(self.held, -1)[rows.expert]


class _Down(nn.Module):
    """F to H of every expert, stored as its transpose: weight [held * F, H]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        experts, width, hidden = config.moe.experts, config.expert_width, config.hidden_size
        self.held, self._layers = layers.experts.share(experts), layers
        place = {"experts": experts, "first": layers.experts.rank * self.held, "held": self.held}
        cut = {"degree": layers.degree, "rank": layers.rank}
        self.weight = nn.Parameter(torch.empty(self.held * width // layers.degree, hidden, dtype=layers.dtype))
        declare_experts(self.weight, rows=(width,), columns=hidden, std=residual_std(config), **place, **cut)
        self.bias: nn.Parameter | None = None
        if config.bias:
            self.bias = nn.Parameter(torch.empty(self.held * hidden, dtype=layers.dtype))
            declare_experts(self.bias, rows=(hidden,), **place)
        inputs = Line.of(Declaration((width,), 0, (width,), layers.degree, layers.rank, 0.0), 0)
        self._product = _product(config, layers, "down", (inputs, _line(hidden)))

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        y = self._product(x, self.weight.view(self.held, x.shape[-1], -1), rows)
        if self.bias is None:
            return y
        # every rank of the tensor axis adds its part of the bias, since their sum follows
        return y + self._layers.use_in_heads(self.bias).view(self.held, -1)[rows.expert] / self._layers.degree


class Experts(nn.Module):
    """The routed experts of a layer that this rank holds."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self.up, self.down = _Up(config, layers), _Down(config, layers)
        self.activation = activation_of(config, layers, config.expert_width)

    def forward(self, x: Tensor, counts: Tensor, tokens: Tensor | None = None, first_sample: int = 0) -> Tensor:
        """x: [N, H] sorted by expert; counts: int64 [held], rows of each expert, that sum to N; tokens, first_sample: see
        `Rows`. Returns [N, H], over the tensor axis in parts that the caller sums."""
        rows = Rows.of(counts, x.shape[0], tokens, first_sample)
        return self.down(self.activation(self.up(x, rows)), rows)


def _line(width: int) -> Line:
    return Line(((0, 0, width),), width)


def _product(config: ModelConfig, layers: Layers, name: str, lines: tuple[Line, Line]) -> Product | QuantisedExperts:
    """The product of a layer's experts, `up` or `down`. lines: inputs and outputs of one expert."""
    plain = Product(config.moe.product)
    if not layers.products.quantised:
        return plain
    experts = config.moe.experts
    first = layers.experts.rank * layers.experts.share(experts)
    axes = layers.product_axes("outputs" if name == "up" else "inputs")
    place = f"{layers.name}.{name}"
    return QuantisedExperts(
        plain,
        layers.products,
        layers.kernels,
        layers.clock.seed,
        place,
        lines,
        axes,
        first,
        experts,
        layers.health,
    )
