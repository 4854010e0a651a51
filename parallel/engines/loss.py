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

from models.config import ModelConfig
from models.layers import Loss
from models.loss import PLAIN, LossConfig, Terms
from models.objectives.config import ReweightConfig
from models.random import Asked
from parallel.context import cut_for
from parallel.engines.base import Batch
from parallel.mesh import Mesh
from parallel.schedule import SCHEDULES
from parallel.transfer import sent


class WeightedLoss:
    """What the losses of a micro-batch add up to. loss: (logits [S', B, share of V], targets [S', B]) -> [S', B]; options: its
    terms, which only training has, and whether the head gives losses itself."""

    def __init__(self, loss: Loss, config: ReweightConfig, mesh: Mesh, options: LossConfig | None = None) -> None:
        self.loss, self.config, self.mesh, self.options = loss, config, mesh, options or LossConfig()

    def asked(self, batch: Batch, model: ModelConfig, *, training: bool) -> Asked | None:
        """What the head is asked of a batch of uncut sequences, if it is to give losses. It is told the weights too, and then
        computes gradients as it goes (`models/kernels/linear_cross_entropy/chunks.py`), unless losses are weighted by
        themselves, or so many micro-batches go forward before the first goes back that their gradients would pile up."""
        if not self.options.fused:
            return None
        config = self.mesh.config
        piled_up = config.pipeline > 1 and config.schedule == "gpipe"
        own, device = cut_for(self.mesh).batch(batch), self.mesh.device
        targets, weights = (sent(part[:, model.encoder_length :], device) for part in (own.targets, own.weights))
        told = training and self.config.name == "none" and not piled_up
        return Asked(targets, weights if told else None, self._terms(training))

    def __call__(self, output: Tensor, targets: Tensor, weights: Tensor, *, training: bool) -> Tensor:
        """Sum of the weighted losses of logits [S', B, share of V], or of losses [S', B], which are those of the last S' of
        targets and weights [B, S]: an encoder's rows predict nothing, and have none. Training weights sequences, too."""
        first = targets.shape[1] - output.shape[0]
        if output.dim() == 3:
            # where backward is split the engine runs it twice
            once = training and not SCHEDULES[self.mesh.config.schedule].splits_backward
            output = self.loss(output, targets[:, first:].t().contiguous(), self._terms(training), in_place=once)
        return self.sum(output, weights[:, first:].t(), training=training)

    def _terms(self, training: bool) -> Terms:
        return self.options.terms if training else PLAIN

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
