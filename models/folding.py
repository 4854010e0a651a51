"""A model with multipliers as the same function without them: they go into the weights, for readers that know none.

What the head's input is multiplied by goes into the gains before the head (which leaves a tied embedding as it is), the
queries' into their rows or their norm, a branch's into what it ends in, the embeddings' into their tables. A power of
two changes no bit of what is computed; others round each weight once. Such weights are to be read, not trained on: their
learning rates are lost.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.config import ModelConfig, ModelError
from models.parametrization import ParametrizationConfig
from models.surgery import INTO_THE_RESIDUAL, Weights


def fold(source: Weights) -> Weights:
    """The weights of the model without a parametrization that gives the same logits. ModelError where there are none."""
    model = source.model
    plain = replace(model, parametrization=ParametrizationConfig())
    if all(factor == 1 for factor in model.scales.multipliers.values()):
        return Weights(plain, source.read, source.memory)
    _refuse(model)

    def read(name: str) -> Tensor:
        tensor = source.read(name)
        factor = _factor(model, name, tensor)
        return tensor if factor is None else tensor * factor

    return Weights(plain, read, source.memory)


def _refuse(model: ModelConfig) -> None:
    scales = model.scales
    if model.norm_position == "post" and model.tied_embeddings and scales.head != scales.embedding:
        raise ModelError(
            "model.tied_embeddings=true: with model.norm_position=post no gain before the head can take the multipliers of "
            f"logits, {scales.head:g}, and of embeddings, {scales.embedding:g}; keep the checkpoint as it is"
        )


def _factor(model: ModelConfig, name: str, tensor: Tensor) -> float | Tensor | None:
    """What a tensor is multiplied by; None where it stays."""
    scales, place = model.scales, name.split(".", 2)[-1]
    if name in ("embedding.token.weight", "positions.weight"):
        return _or_none(scales.embedding)
    before_head = "final_norm.norm." if model.norm_position == "pre" else "head.projection."
    if name.startswith(before_head):
        # a tied head has the embedding's factor already
        return _or_none(scales.head / (scales.embedding if model.tied_embeddings else 1.0))
    if place in INTO_THE_RESIDUAL:
        return _or_none(scales.branch)
    normed = model.qk_norm or model.qk_norm_whole
    if normed and place.endswith("query_norm.weight"):
        return _or_none(scales.query)
    if not normed and place.startswith(("attention.qkv.", "cross.query.")) and scales.query != 1:
        factors = torch.ones(tensor.shape[0], *[1] * (tensor.dim() - 1), dtype=tensor.dtype)
        factors[: model.heads * model.head_width] = scales.query
        return factors
    return None


def _or_none(factor: float) -> float | None:
    return None if factor == 1 else factor
