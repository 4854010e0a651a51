"""Optimizers from their configuration, with the usual weight-decay groups."""

from __future__ import annotations

import torch

from launcher.config import OptimizerConfig
from models.parameters import declaration
from parallel.engines.base import NamedParameters, OptimizerFactory


def optimizer_factory(config: OptimizerConfig) -> OptimizerFactory:
    """A function from named parameters to a torch optimizer.

    Matrices and embeddings decay, norm gains and biases do not (told apart by the dims of the logical tensor, since ZeRO
    flattens the local one). The learning rate starts at 0 and is set by the engine before every step.
    """

    def build(named: NamedParameters) -> torch.optim.Optimizer:
        matrices = [parameter for _, parameter in named if len(declaration(parameter).shape) > 1]
        vectors = [parameter for _, parameter in named if len(declaration(parameter).shape) <= 1]
        groups = [
            {"params": parameters, "weight_decay": decay}
            for parameters, decay in ((matrices, config.weight_decay), (vectors, 0.0))
            if parameters
        ]
        if config.name == "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=config.beta1, fused=True)
        return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)

    return build
