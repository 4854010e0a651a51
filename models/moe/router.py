"""The router: which experts a token is sent to, with which weight, and what is asked of it so that experts share the work.

All of it in float32. Shapes: S sequence (this rank's share), B batch, H hidden, E experts, K chosen.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from models.dropout import offsets_of
from models.layers import Layers, replicated_product
from models.moe.config import MoEConfig
from models.moe.routing import tally
from models.moe.telemetry import BUCKETS
from models.random import stream_key, uniform

Choice = tuple[Tensor, Tensor, Tensor | None]
"""Where the whole sequence's tokens go, on every rank of the tensor axis: weights float32 and experts int64 [S, B, K], and
whether each choice is within its expert's capacity (None: nothing is dropped). A plain tuple: ZeRO 3 looks into no other."""


class Router(nn.Module):
    """Scores every expert for every token and chooses K; weight [E, H]."""

    def __init__(self, config: MoEConfig, layers: Layers, hidden: int, layer: int, *, std: float) -> None:
        super().__init__()
        self.config, self.layer, self._layers = config, layer, layers
        self.weight = layers.replicated(nn.Parameter(torch.empty(config.experts, hidden, dtype=layers.dtype)), std=std)
        self._product = replicated_product(layers, "router", self.weight)
        self._noise = stream_key(layers.clock.seed, "jitter", layer)
        layers.routing.add(layer, config.experts)

    def forward(self, x: Tensor, first_sample: int) -> Choice:
        """x: [S, B, H] this rank's share; first_sample: global index of the first sequence."""
        weight = self._layers.use(self.weight).float()
        logits = self._product(self._jittered(x.float(), first_sample), weight, None, first_sample)
        scores = logits.softmax(-1) if self.config.scoring == "softmax" else logits.sigmoid()
        experts = self.choose(scores.detach())
        weights = scores.gather(-1, experts)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        if self.config.scale != 1.0:
            weights = weights * self.config.scale
        whole = self._layers.gather_choices(experts)
        if self.training:
            weights = self._balanced(weights, logits, scores, whole)
        weights = self._layers.enter(weights)
        drops = torch.zeros(2, BUCKETS, dtype=torch.float64, device=x.device)
        kept = self._within_capacity(whole, weights.detach(), drops) if self.config.capacity else None
        if self.training:
            self._count(first_sample, logits.detach(), scores.detach(), whole, drops)
        return weights, whole, kept

    def choose(self, scores: Tensor) -> Tensor:
        """Experts int64 [..., K] for scores [..., E]: the highest scores plus bias, within the allowed groups."""
        config = self.config
        ranked = scores + self._state.bias if config.bias_rate else scores
        if config.top_groups < config.groups:
            grouped = ranked.unflatten(-1, (config.groups, -1))
            best = grouped.amax(-1) if config.group_score == "max" else grouped.topk(2, dim=-1).values.sum(-1)
            allowed = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, best.topk(config.top_groups).indices, True)
            ranked = grouped.masked_fill(~allowed.unsqueeze(-1), float("-inf")).flatten(-2)
        return ranked.topk(config.top_k, dim=-1).indices

    @property
    def _state(self) -> Any:
        return self._layers.routing.states[self.layer]

    def _jittered(self, x: Tensor, first_sample: int) -> Tensor:
        if not self.config.jitter or not self.training:
            return x
        index = offsets_of(self._layers, x, first_sample, self._layers.uncut(x.shape[0]))
        noise = uniform(self._noise, index).mul_(2).sub_(1).mul_(self.config.jitter).add_(1)
        return x * noise.float()

    def _balanced(self, weights: Tensor, logits: Tensor, scores: Tensor, whole: Tensor) -> Tensor:
        """The same weights, in whose backward the router's own losses begin."""
        config, losses = self.config, []
        tokens = self._layers.uncut(logits.shape[0]) * logits.shape[1]
        if config.aux_loss:
            if config.keeps_frequencies:
                share = self._state.frequency
            else:
                counts = self._layers.count_over_context(tally(whole, config.experts))
                share = counts.float() / (tokens * config.top_k)
            mean = _as_shares(scores, config).flatten(0, 1).sum(0) / tokens
            losses.append(config.aux_loss * config.experts * (share * mean).sum())
        if config.z_loss:
            losses.append(config.z_loss * logits.logsumexp(-1).square().sum() / tokens)
        return _Attach.apply(weights, sum(losses), self._layers.routing.scale) if losses else weights

    def _within_capacity(self, experts: Tensor, weights: Tensor, drops: Tensor) -> Tensor:
        """Which choices [S, B, K] their expert still has room for, bool. First choices come before second ones, and among
        them earlier positions, or higher weights; every sequence of a micro-batch is treated alike. Adds to `drops`
        [2, 16], over the whole sequences: dropped and all choices by position."""
        config, layers = self.config, self._layers
        experts, weights = layers.whole_sequence(experts), layers.whole_sequence(weights)
        order = torch.arange(experts.numel(), device=experts.device)
        flat = experts.permute(2, 0, 1).flatten()
        if config.drop == "probability":
            order = weights.permute(2, 0, 1).flatten().sort(descending=True, stable=True).indices
        by_expert = flat[order].sort(stable=True)
        counts = tally(flat, config.experts)
        begins = counts.cumsum(0) - counts
        place = torch.arange(flat.numel(), device=flat.device) - begins[by_expert.values]
        room = math.ceil(config.capacity * flat.numel() / config.experts)
        kept = torch.empty_like(flat, dtype=torch.bool)
        kept[order[by_expert.indices]] = place < room
        whole = kept.view(experts.shape[2], *experts.shape[:2]).permute(1, 2, 0)
        bucket = torch.arange(whole.shape[0], device=whole.device) * BUCKETS // whole.shape[0]
        drops[0].index_add_(0, bucket, (~whole).sum((1, 2)).double())
        drops[1].index_add_(0, bucket, torch.full_like(bucket, whole[0].numel()).double())
        return layers.own_positions(whole)

    @torch.no_grad()
    def _count(self, first_sample: int, logits: Tensor, scores: Tensor, whole: Tensor, drops: Tensor) -> None:
        shares = _as_shares(scores, self.config).flatten(0, 1)
        self._layers.routing.record(
            self.layer,
            first_sample,
            choices=tally(whole, self.config.experts),
            scores=shares.sum(0),
            entropy=-torch.xlogy(shares, shares).sum(),
            z=logits.logsumexp(-1).square().sum(),
            drops=drops,
        )


def _as_shares(scores: Tensor, config: MoEConfig) -> Tensor:
    """Scores that sum to 1 over the experts."""
    return scores if config.scoring == "softmax" else scores / scores.sum(-1, keepdim=True)


class _Attach(torch.autograd.Function):
    """Identity for x; in backward the loss gets the gradient `scale`, as if it had been added to the model's loss. So a layer
    has a loss of its own under any pipeline schedule, which pass on nothing but activations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.dtype, ctx.device = scale, loss.dtype, loss.device
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, torch.tensor(ctx.scale, dtype=ctx.dtype, device=ctx.device), None
