"""A decoder layer's mixture of experts: route, send tokens to their experts, bring the results back, add the shared ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.core import positions_of
from models.feedforward import FeedForward
from models.kernels.moe_permute import Order, order_of, permute, unpermute
from models.layers import Layers
from models.moe.experts import Experts
from models.moe.products import POSITION
from models.moe.router import Router


class MixtureOfExperts(nn.Module):
    """[S, B, H] -> [S, B, H]: sum over a token's chosen experts of weight x expert(token), plus the shared experts
    (Shazeer et al., arXiv 1701.06538; shared experts: DeepSeekMoE, arXiv 2401.06066)."""

    def __init__(self, config: ModelConfig, layers: Layers, layer: int) -> None:
        super().__init__()
        self._layers = layers
        # no block of what is quantised along tokens may hold those of two experts
        self._multiple = layers.products.step("weight_gradient")
        self.router = Router(config.moe, layers, config.hidden_size, layer, std=config.output_std)
        self.experts = Experts(config, layers.within("experts"))
        shared = config.moe.shared_experts * config.expert_width
        self.shared = FeedForward(config, layers.within("shared"), shared) if shared else None
        self.shared_gate = _Gate(config, layers) if config.moe.shared_gate else None

    def forward(self, x: Tensor, first_sample: int) -> Tensor:
        weights, experts, kept = self.router(x, first_sample)
        whole = self._layers.enter(x)
        tokens = whole.flatten(0, 1)
        order, kernels = order_of(experts, kept, self.router.config.experts, self._multiple), self._layers.kernels
        axis = self._layers.experts
        sent = axis.send(permute(tokens, order, kernels), order.counts)
        always = self._shared(x, first_sample)  # while the tokens travel
        rows, counts = sent.arrived()
        names = self._names(order, whole, first_sample)
        counted = first_sample if self._layers.health.recording else 0
        results = sent.back(self.experts(rows, counts, names, counted))
        y = self._layers.leave(unpermute(results, weights, order, kernels).view_as(whole))
        return y if always is None else y + always

    def _names(self, order: Order, whole: Tensor, first_sample: int) -> Tensor | None:
        """Which token arrives in each row, as `Rows.tokens` says, where numbers are rounded at random. whole: [S, B, H]."""
        if not self._layers.products.stochastic:
            return None
        length, batch = whole.shape[:2]
        positions = positions_of(self._layers.spans_in_heads(length), whole.device)
        names = (torch.arange(batch, device=whole.device) + first_sample << POSITION) + positions[:, None]
        names = torch.cat((names.flatten(), names.new_zeros(1)))  # a row of zeros is no token's
        copies = names[order.rows // order.top_k]
        return self._layers.experts.send(copies[:, None], order.counts).arrived()[0].flatten()

    def _shared(self, x: Tensor, first_sample: int) -> Tensor | None:
        if self.shared is None:
            return None
        y = self.shared(x, first_sample)
        return y if self.shared_gate is None else y * self.shared_gate(x)


class _Gate(nn.Module):
    """sigmoid(x · weight), [S, B, H] -> [S, B, 1]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self._layers = layers
        weight = nn.Parameter(torch.empty(1, config.hidden_size, dtype=layers.dtype))
        self.weight = layers.replicated(weight, std=config.output_std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._layers.use(self.weight)).sigmoid()
