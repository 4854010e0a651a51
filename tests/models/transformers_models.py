"""Hugging Face transformers' models of the same shape as ours, with random weights and eager attention.

Built from the same config.json that `triaxis checkpoint convert` writes, so the oracle tests hold that to account, too.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from models.config import ModelConfig
from models.huggingface_config import to_config


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    """Their model that computes the same function, without dropout."""
    theirs = to_config(replace(config, dropout=0.0, attention_dropout=0.0), "float32")
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(theirs.pop("model_type"), **theirs), attn_implementation="eager"
    )
