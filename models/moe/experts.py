"""The experts' matrices and their products: tokens sorted by expert go in, each through its expert's feed-forward.

The matrices of all experts of a rank lie one below the other in one parameter, so that a grouped product reads them as they
are, sharding cuts them anywhere, and a checkpoint holds one tensor a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.feedforward import ACTIVATION_FUNCTIONS, residual_std
from models.layers import Layers
from models.parameters import declare_experts


@dataclass(frozen=True)
class Rows:
    """How N rows, sorted by expert, belong to the experts of this rank. ends: int32 [held], one past each expert's last row;
    expert: int64 [N], whose a row is."""

    ends: Tensor
    expert: Tensor

    @staticmethod
    def of(counts: Tensor, rows: int) -> Rows:
        """From int64 counts [held] that sum to `rows`."""
        return Rows(counts.cumsum(0).to(torch.int32), torch.repeat_interleave(counts, output_size=rows))


class _Up(nn.Module):
    """H to F of every expert (gate rows, then up rows, of one expert after the other): weight [held * rows, H]."""

    def __init__(self, config: ModelConfig, layers: Layers, product: Product) -> None:
        super().__init__()
        experts, rows = config.moe.experts, (config.expert_width,) * (2 if config.gated else 1)
        self.held, self._product = layers.experts.share(experts), product
        place = {"experts": experts, "first": layers.experts.rank * self.held, "held": self.held}
        cut = {"degree": layers.degree, "rank": layers.rank}
        count = self.held * sum(rows) // layers.degree
        self.weight = nn.Parameter(torch.empty(count, config.hidden_size, dtype=layers.dtype))
        declare_experts(self.weight, rows=rows, columns=config.hidden_size, std=config.init_std, **place, **cut)
        self.bias: nn.Parameter | None = None
        if config.bias:
            self.bias = nn.Parameter(torch.empty(count, dtype=layers.dtype))
            declare_experts(self.bias, rows=rows, **place, **cut)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        y = self._product(x, self.weight.view(self.held, -1, x.shape[-1]).transpose(1, 2), rows.ends)
        return y if self.bias is None else y + self.bias.view(self.held, -1)[rows.expert]


class _Down(nn.Module):
    """F to H of every expert, stored as its transpose: weight [held * F, H]."""

    def __init__(self, config: ModelConfig, layers: Layers, product: Product) -> None:
        super().__init__()
        experts, width, hidden = config.moe.experts, config.expert_width, config.hidden_size
        self.held, self._layers, self._product = layers.experts.share(experts), layers, product
        place = {"experts": experts, "first": layers.experts.rank * self.held, "held": self.held}
        cut = {"degree": layers.degree, "rank": layers.rank}
        self.weight = nn.Parameter(torch.empty(self.held * width // layers.degree, hidden, dtype=layers.dtype))
        declare_experts(self.weight, rows=(width,), columns=hidden, std=residual_std(config), **place, **cut)
        self.bias: nn.Parameter | None = None
        if config.bias:
            self.bias = nn.Parameter(torch.empty(self.held * hidden, dtype=layers.dtype))
            declare_experts(self.bias, rows=(hidden,), **place)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        y = self._product(x, self.weight.view(self.held, x.shape[-1], -1), rows.ends)
        if self.bias is None:
            return y
        # every rank of the tensor axis adds its part of the bias, since their sum follows
        return y + self._layers.use_in_heads(self.bias).view(self.held, -1)[rows.expert] / self._layers.degree


class Experts(nn.Module):
    """The routed experts of a layer that this rank holds."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        product = Product(config.moe.product)
        self.up, self.down = _Up(config, layers, product), _Down(config, layers, product)
        self.activation = ACTIVATION_FUNCTIONS[config.activation]

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x: [N, H] sorted by expert; counts: int64 [held], rows of each expert, that sum to N. Returns [N, H], over the tensor
        axis in parts that the caller sums."""
        rows = Rows.of(counts, x.shape[0])
        return self.down(self.activation(self.up(x, rows)), rows)


class Product:
    """Rows of x [N, I] of each expert times its matrix [I, O] -> [N, O].

    grouped: one call for all experts. loop: one product an expert, the reference, for widths too that are no multiple of 16
    bytes.
    """

    def __init__(self, kind: str) -> None:
        self.loop = kind == "loop"

    def __call__(self, x: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
        if not self.loop:
            return F.grouped_mm(x, matrices, offs=ends)
        parts, begin = [], 0
        for matrix, end in zip(matrices, ends.tolist(), strict=True):
            parts.append(x[begin:end] @ matrix)
            begin = end
        return torch.cat(parts)
