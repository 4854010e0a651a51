"""The loss of a micro-batch, and weights of samples by their own losses while they are trained on (after arXiv 2502.06733).

Of the n sequences of a micro-batch that ask for anything, each one's mean loss l (over its targets, by their weights) is
brought to h = 2 (l - smallest) / (largest - smallest) - 1, and its targets are weighted by n softmax(f(h) / temperature).
linupper, f = min(h, cap): what is already known counts less, what lies above the cap no more than that; quadratic, f = 1 - h^2:
both ends count less; extremes, f = h^2: the middle does. No gradient goes through the weights. They depend on a micro-batch, as
a capacity of experts does: a layout equals one process with the same micro-batches.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.layers import Loss
from models.objectives.config import ReweightConfig
from parallel.mesh import Mesh


class WeightedLoss:
    """What the losses of a micro-batch add up to. loss: (logits [S', B, share of V], targets [S', B]) -> [S', B]."""

    def __init__(self, loss: Loss, config: ReweightConfig, mesh: Mesh) -> None:
        self.loss, self.config, self.mesh = loss, config, mesh

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor, *, training: bool) -> Tensor:
        """Sum of the weighted losses of logits [S', B, share of V], which are those of the last S' of targets and weights
        [B, S]: an encoder's rows predict nothing, and have none. In training, sequences are weighted too."""
        first = targets.shape[1] - logits.shape[0]
        return self.sum(
            self.loss(logits, targets[:, first:].t().contiguous()), weights[:, first:].t(), training=training
        )

    def sum(self, losses: Tensor, weights: Tensor, *, training: bool) -> Tensor:
        """losses, weights: [S', B] -> their weighted sum."""
        weighted = losses * weights
        if self.config.name == "none" or not training:
            return weighted.sum()
        return (weighted * self._factors(weighted.detach(), weights)).sum()

    def _factors(self, weighted: Tensor, weights: Tensor) -> Tensor:
        """float32 [B]."""
        sums = torch.stack((weighted.sum(0), weights.sum(0))).float()
        if self.mesh.config.context > 1:
            dist.all_reduce(sums, group=self.mesh.context_group)
        there = sums[1] > 0
        return sample_weights(self.config, sums[0] / sums[1].clamp(min=1e-30), there)


def sample_weights(config: ReweightConfig, losses: Tensor, there: Tensor) -> Tensor:
    """Weights [B], 1 on average, of sequences with these mean losses [B]; there: bool [B], which of them ask for anything."""
    lowest = losses.masked_fill(~there, torch.inf).amin()
    highest = losses.masked_fill(~there, -torch.inf).amax()
    place = 2 * (losses - lowest) / (highest - lowest).clamp(min=1e-12) - 1
    score = {
        "linupper": place.clamp(max=config.cap),
        "quadratic": 1 - place.square(),
        "extremes": place.square(),
    }[config.name]
    return (score / config.temperature).masked_fill(~there, -torch.inf).softmax(0).nan_to_num() * there.sum()
