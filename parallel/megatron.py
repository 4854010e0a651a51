"""The one door to megatron-core: everything that Triaxis takes from it, by name.

megatron-core tells four times at import that apex and Transformer Engine are absent; nothing here uses them. Nor does
anything here use its inference, which imports wandb, or its jit-fused functions, each of which would be given to torch.compile
while it is imported: without both a process starts in two thirds of the time.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def lean() -> Iterator[None]:
    """While megatron-core or DeepSpeed's Muon is imported: no wandb to be found, and torch.compile leaves functions as is."""

    def as_it_is(function: Any = None, **_: Any) -> Any:
        return as_it_is if function is None else function

    compile_, wandb = torch.compile, sys.modules.get("wandb")
    torch.compile = as_it_is  # type: ignore[assignment]
    sys.modules["wandb"] = wandb  # type: ignore[assignment]  # None: an ImportError, which megatron-core expects
    try:
        yield
    finally:
        torch.compile = compile_
        if wandb is None:
            del sys.modules["wandb"]


with warnings.catch_warnings(), lean():
    warnings.simplefilter("ignore")
    from megatron.core import ModelParallelConfig, parallel_state
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        RowParallelLinear,
        VocabParallelEmbedding,
    )
    from megatron.core.tensor_parallel.layers import linear_with_grad_accumulation_and_async_allreduce
    from megatron.core.tensor_parallel.mappings import (
        copy_to_tensor_model_parallel_region,
    )

__all__ = [
    "ColumnParallelLinear",
    "ModelParallelConfig",
    "RowParallelLinear",
    "VocabParallelEmbedding",
    "copy_to_tensor_model_parallel_region",
    "lean",
    "linear_with_grad_accumulation_and_async_allreduce",
    "parallel_state",
]
