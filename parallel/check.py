"""Which layouts a world and a model allow. Imports no torch, so that the launcher can refuse before it starts anything."""

from __future__ import annotations

from dataclasses import replace

from models.config import ModelConfig
from parallel.config import ParallelConfig, ParallelError


def resolve_world(config: ParallelConfig, world_size: int) -> ParallelConfig:
    """Fill in `data=0` and refuse a layout that does not divide the world."""
    data = config.data or world_size // config.model_parallel
    if data * config.model_parallel != world_size or data < 1:
        degrees = f"parallel.tensor={config.tensor} x parallel.pipeline={config.pipeline} x parallel.data={data or 1}"
        raise ParallelError(
            f"{degrees}: makes {max(1, data) * config.model_parallel} processes, but the world has {world_size}; "
            "choose degrees whose product is the number of processes"
        )
    return replace(config, data=data)


def check_model(config: ParallelConfig, model: ModelConfig, sequence_length: int) -> None:
    """Refuse a model that a layout cannot cut evenly."""
    degree = config.tensor
    for option, value in (
        ("heads", model.heads),
        ("kv_heads", model.key_value_heads),
        ("ffn_size", model.ffn_width),
        ("vocab_size (padded)", model.padded_vocab),
    ):
        if value % degree:
            cure = (
                f"set model.vocab_multiple to a multiple of {degree}"
                if option.startswith("vocab")
                else f"choose a tensor degree that divides {value}"
            )
            raise ParallelError(f"model.{option}={value}: does not divide by parallel.tensor={degree}; {cure}")
    if config.sequence_parallel and sequence_length % degree:
        raise ParallelError(
            f"train.sequence_length={sequence_length}: does not divide by parallel.tensor={degree}, as "
            "parallel.sequence_parallel=true needs; choose a multiple"
        )
    if config.pipeline > model.layers:
        raise ParallelError(
            f"parallel.pipeline={config.pipeline}: more stages than model.layers={model.layers}; choose fewer stages"
        )
