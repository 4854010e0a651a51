"""Hugging Face transformers' models of the same shape as ours, with random weights and eager attention.

Built from the same config.json that `triaxis checkpoint convert` writes, so the oracle tests hold that to account, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from models.config import ModelConfig
from models.huggingface import family
from models.huggingface_config import to_config


def transformers_model(config: ModelConfig) -> PreTrainedModel:
    """Their model that computes the same function, without dropout."""
    theirs = to_config(replace(config, dropout=0.0, attention_dropout=0.0), "float32")
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(theirs.pop("model_type"), **theirs), attn_implementation="eager"
    )


def in_memory(config: ModelConfig, files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as their files name them -> as their modules do, which stack the experts of a layer since transformers 5."""
    found: dict[str, Tensor] = {}
    stacks: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, value in files.items():
        name = name.replace("block_sparse_moe", "mlp")
        if ".experts." not in name:
            found[name] = value
            continue
        layer, path = name.split(".experts.")
        expert, matrix, _ = path.split(".")
        stacks.setdefault(layer, {})[int(expert), _MATRICES.get(matrix, matrix)] = value
    for layer, matrices in stacks.items():
        experts = range(config.moe.experts)
        fused = [torch.cat((matrices[e, "gate_proj"], matrices[e, "up_proj"])) for e in experts]
        found[f"{layer}.experts.gate_up_proj"] = torch.stack(fused)
        found[f"{layer}.experts.down_proj"] = torch.stack([matrices[e, "down_proj"] for e in experts])
    return found


def as_in_files(config: ModelConfig, modules: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Back from `in_memory`."""
    mixtral = family(config) == "mixtral"
    found: dict[str, Tensor] = {}
    for name, value in modules.items():
        if mixtral:
            name = name.replace(".mlp.", ".block_sparse_moe.")
        if ".experts." not in name:
            found[name] = value
            continue
        layer, path = name.split(".experts.")
        for expert, matrix in enumerate(value):
            parts = (
                {"gate_proj": matrix.chunk(2)[0], "up_proj": matrix.chunk(2)[1]}
                if "up" in path
                else {"down_proj": matrix}
            )
            for part, rows in parts.items():
                theirs = {new: old for old, new in _MATRICES.items()}[part] if mixtral else part
                found[f"{layer}.experts.{expert}.{theirs}.weight"] = rows
    return found


_MATRICES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
