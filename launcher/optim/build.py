"""Optimizers from their configuration, with the usual weight-decay groups."""

from __future__ import annotations

from typing import Any

import torch

from launcher.config import OptimizerConfig
from models.config import ModelConfig
from models.keys import stream_key
from models.parameters import declaration
from models.parametrization import scaling_of
from parallel.engines.base import NamedParameters, OptimizerFactory


def optimizer_factory(
    config: OptimizerConfig, kernels: str = "auto", seed: int = 0, model: ModelConfig | None = None
) -> OptimizerFactory:
    """A function from named parameters to a torch optimizer.

    Matrices and embeddings decay, norm gains and biases do not (told apart by the dims of the logical tensor, since ZeRO
    flattens the local one). The learning rate starts at 0 and is set by the engine before every step.
    kernels: what computes AdamW, one of `models.kernels.choice.CHOICES`: `reference`, and `auto` on CPU, take torch's own
    fused one, the others the one-pass optimizer or apex's. seed: of stochastic rounding, without a master. model: whose
    parametrization gives groups of parameters their share of the learning rate, `rate_scale`, which `set_learning_rate` heeds.
    """

    def build(named: NamedParameters) -> torch.optim.Optimizer:
        groups = _groups(config, named, model)
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


def _groups(config: OptimizerConfig, named: NamedParameters, model: ModelConfig | None) -> list[dict[str, Any]]:
    """Matrices first, then vectors; of a parametrization, those that scale alike together."""
    found: dict[tuple, dict[str, Any]] = {}
    for name, parameter in sorted(named, key=lambda one: len(declaration(one[1]).shape) <= 1):
        dims = len(declaration(parameter).shape)
        options: dict[str, Any] = {"weight_decay": config.weight_decay if dims > 1 else 0.0}
        if model is not None and model.parametrization.kind != "standard":
            scaling = scaling_of(model.scales, config.name, name, dims)
            options = {"weight_decay": options["weight_decay"] * scaling.decay, "rate_scale": scaling.rate}
            if config.name == "adamw":
                options["eps"] = config.epsilon * scaling.epsilon
        group = found.setdefault((dims > 1, *options.values()), {"params": [], **options})
        group["params"].append(parameter)
    return list(found.values())


def _kind(config: OptimizerConfig, kernels: str, named: NamedParameters) -> str:
    """torch, apex or one_pass."""
    on_cpu = all(parameter.device.type == "cpu" for _, parameter in named)
    if config.master == "none":
        return "one_pass"
    if kernels == "reference" or (kernels in ("auto", "apex", "liger") and on_cpu):
        return "torch"
    return "apex" if kernels == "apex" else "one_pass"
