"""A decoder layer's mixture of experts: route, send tokens to their experts, bring the results back, add the shared ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.feedforward import FeedForward
from models.layers import Layers
from models.moe.experts import Experts
from models.moe.router import Router
from models.moe.routing import tally


class MixtureOfExperts(nn.Module):
    """[S, B, H] -> [S, B, H]: sum over a token's chosen experts of weight x expert(token), plus the shared experts
    (Shazeer et al., arXiv 1701.06538; shared experts: DeepSeekMoE, arXiv 2401.06066)."""

    def __init__(self, config: ModelConfig, layers: Layers, layer: int) -> None:
        super().__init__()
        self._layers = layers
        self.router = Router(config.moe, layers, config.hidden_size, layer, std=config.init_std)
        self.experts = Experts(config, layers.within("experts"))
        shared = config.moe.shared_experts * config.expert_width
        self.shared = FeedForward(config, layers.within("shared"), shared) if shared else None
        self.shared_gate = _Gate(config, layers) if config.moe.shared_gate else None

    def forward(self, x: Tensor, first_sample: int) -> Tensor:
        weights, experts, kept = self.router(x, first_sample)
        whole = self._layers.enter(x)
        tokens = whole.flatten(0, 1)
        sort = _Sort(experts, kept, self.router.config.experts)
        axis = self._layers.experts
        sent = axis.send(sort.spread(tokens), sort.counts)
        always = self._shared(x, first_sample)  # while the tokens travel
        rows, counts = sent.arrived()
        results = sent.back(self.experts(rows, counts))
        y = self._layers.leave(sort.combine(results, weights).view_as(whole))
        return y if always is None else y + always

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
        self.weight = layers.replicated(weight, std=config.init_std)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._layers.use(self.weight)).sigmoid()


class _Sort:
    """The kept choices of N tokens, ordered by expert: row i of what experts see is a copy of a token.

    rows: int64, which choice (token x K + k) stands in each row. place: int64 [N x K], the row of each choice; of a dropped one
    the row of zeros behind the last. counts: int64 [E].
    """

    def __init__(self, chosen: Tensor, within: Tensor | None, experts: int) -> None:
        flat = chosen.flatten()
        self.top_k = chosen.shape[-1]
        if within is not None:
            flat = flat.masked_fill(~within.flatten(), experts)  # dropped ones come last, and are left out
        counts = tally(flat, experts + 1)
        order = flat.argsort(stable=True)
        self.counts = counts[:experts]
        kept = flat.numel() if within is None else int(self.counts.sum())
        self.rows = order[:kept]
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(order.numel(), device=order.device).clamp_(max=kept)
        self.dropped = kept < flat.numel()

    def spread(self, tokens: Tensor) -> Tensor:
        """[N, H] -> the rows, [kept, H]."""
        return _Spread.apply(tokens, self)

    def combine(self, results: Tensor, weights: Tensor) -> Tensor:
        """results [kept, H] of the rows, weights [S, B, K] -> weighted sums [N, H]."""
        return _Combine.apply(results, weights.flatten(), self)

    def of_choices(self, rows: Tensor) -> Tensor:
        """[kept, H] -> [N, K, H], zero for what was dropped."""
        if self.dropped:
            rows = torch.cat((rows, rows.new_zeros(1, rows.shape[1])))
        return rows.index_select(0, self.place).unflatten(0, (-1, self.top_k))


class _Spread(torch.autograd.Function):
    """Gathers copies of tokens; its gradient gathers, too, and sums K rows, where autograd's would scatter."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, sort: _Sort) -> Tensor:
        ctx.sort = sort
        return tokens.index_select(0, sort.rows // sort.top_k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.sort.of_choices(gradient).sum(1), None


class _Combine(torch.autograd.Function):
    """Weighted sums over the choices of a token, in the type of the results."""

    @staticmethod
    def forward(ctx: Any, results: Tensor, weights: Tensor, sort: _Sort) -> Tensor:
        ctx.sort = sort
        ctx.save_for_backward(results, weights)
        shares = weights.to(results.dtype).view(-1, 1, sort.top_k)
        return (shares @ sort.of_choices(results)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        results, weights = ctx.saved_tensors
        sort = ctx.sort
        for_results = gradient.index_select(0, sort.rows // sort.top_k)
        for_results = for_results * weights.to(results.dtype).index_select(0, sort.rows).unsqueeze(1)
        for_weights = (sort.of_choices(results) @ gradient.unsqueeze(2)).flatten()
        return for_results, for_weights.to(weights.dtype), None
