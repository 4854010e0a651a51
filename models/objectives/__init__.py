"""Objectives: what a model sees of a sample and what it must predict, with which weight.

An objective is a function of a packed sample alone, independent of model and stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def causal(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predict every next token. samples: int64 [B, S + 1] -> inputs [B, S], targets [B, S], weights float32 [B, S]."""
    inputs, targets = samples[:, :-1].contiguous(), samples[:, 1:].contiguous()
    return inputs, targets, torch.ones(inputs.shape, dtype=torch.float32)


OBJECTIVES: dict[str, Objective] = {"causal": causal}
