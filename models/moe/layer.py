"""A decoder layer's mixture of experts: route, send tokens to their experts, bring the results back, add the shared ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.feedforward import FeedForward
from models.layers import Layers
from models.moe.experts import Experts
from models.moe.router import Router


class MixtureOfExperts(nn.Module):
    """[S, B, H] -> [S, B, H]: sum over a token's chosen experts of weight x expert(token), plus the shared experts
    (Shazeer et al., arXiv 1701.06538; shared experts: DeepSeekMoE, arXiv 2401.06066)."""

    def __init__(self, config: ModelConfig, layers: Layers, layer: int) -> None:
        super().__init__()
        self._layers = layers
        self.router = Router(config.moe, layers, config.hidden_size, layer, std=config.init_std)
        self.experts = Experts(config, layers)
        shared = config.moe.shared_experts * config.expert_width
        self.shared = FeedForward(config, layers, shared) if shared else None
        self.shared_gate = _Gate(config, layers) if config.moe.shared_gate else None

    def forward(self, x: Tensor, first_sample: int) -> Tensor:
        weights, experts, kept = self.router(x, first_sample)
        whole = self._layers.enter(x)
        tokens = whole.flatten(0, 1)
        sort = _Sort(experts, kept, self.router.config.experts)
        axis = self._layers.experts
        sent = axis.send(tokens[sort.tokens], sort.counts)
        always = self._shared(x)  # while the tokens travel
        rows, counts = sent.arrived()
        results = sent.back(self.experts(rows, counts))
        y = self._layers.leave(sort.combine(results, weights).view_as(whole))
        return y if always is None else y + always

    def _shared(self, x: Tensor) -> Tensor | None:
        if self.shared is None:
            return None
        y = self.shared(x)
        return y if self.shared_gate is None else y * self.shared_gate(x)


class _Gate(nn.Module):
    """sigmoid(x · weight), [S, B, H] -> [S, B, 1]."""

    def __init__(self, config: ModelConfig, layers: Layers) -> None:
        super().__init__()
        self._layers = layers
        weight = nn.Parameter(torch.empty(1, config.hidden_size, dtype=layers.dtype))
        self.weight = layers.replicated(weight, std=config.init_std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._layers.use(self.weight)).sigmoid()


class _Sort:
    """The kept choices of N tokens, ordered by expert. tokens: int64, which token stands in each row; counts: int64 [E]."""

    def __init__(self, chosen: Tensor, within: Tensor | None, experts: int) -> None:
        flat = chosen.flatten()
        self.top_k = chosen.shape[-1]
        if within is not None:
            flat = flat.masked_fill(~within.flatten(), experts)  # dropped ones come last, and are left out
        counts = flat.bincount(minlength=experts + 1)
        order = flat.argsort(stable=True)
        self.counts = counts[:experts]
        kept = flat.numel() if within is None else int(self.counts.sum())
        self.tokens = order[:kept] // self.top_k
        # where each choice's result stands; a dropped one finds the row of zeros behind the last
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(order.numel(), device=order.device).clamp_(max=kept)
        self.dropped = kept < flat.numel()

    def combine(self, results: Tensor, weights: Tensor) -> Tensor:
        """results [rows, H] in sorted order, weights [S, B, K] -> weighted sums [N, H]."""
        if self.dropped:
            results = torch.cat((results, results.new_zeros(1, results.shape[1])))
        chosen = results[self.place].view(-1, self.top_k, results.shape[1])
        return (chosen * weights.to(chosen.dtype).view(-1, self.top_k, 1)).sum(1)
