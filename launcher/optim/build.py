"""Optimizers from their configuration, with the usual weight-decay groups."""

from __future__ import annotations

from typing import Any

import torch

from launcher.config import OptimizerConfig
from models.keys import stream_key
from models.parameters import declaration
from parallel.engines.base import NamedParameters, OptimizerFactory


def optimizer_factory(config: OptimizerConfig, kernels: str = "auto", seed: int = 0) -> OptimizerFactory:
    """A function from named parameters to a torch optimizer.

    Matrices and embeddings decay, norm gains and biases do not (told apart by the dims of the logical tensor, since ZeRO
    flattens the local one). The learning rate starts at 0 and is set by the engine before every step.
    kernels: what computes AdamW, one of `models.kernels.choice.CHOICES`: `reference`, and `auto` on CPU, take torch's own
    fused one, the others the one-pass optimizer or apex's. seed: of stochastic rounding, without a master.
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
        options: dict[str, Any] = {"lr": 0.0, "betas": (config.beta1, config.beta2), "eps": config.epsilon}
        kind = _kind(config, kernels, named)
        if kind == "torch":
            return torch.optim.AdamW(groups, fused=True, **options)
        if kind == "apex":
            from launcher.optim.apex import fused_adam

            return fused_adam(groups, **options)
        from launcher.optim.adamw import OnePassAdamW

        keys = {parameter: stream_key(seed, "rounding", name) for name, parameter in named}
        return OnePassAdamW(groups, kernels=kernels, keys=keys, **options)

    return build


def _kind(config: OptimizerConfig, kernels: str, named: NamedParameters) -> str:
    """torch, apex or one_pass."""
    on_cpu = all(parameter.device.type == "cpu" for _, parameter in named)
    if config.master == "none":
        return "one_pass"
    if kernels == "reference" or (kernels in ("auto", "apex", "liger") and on_cpu):
        return "torch"
    return "apex" if kernels == "apex" else "one_pass"
