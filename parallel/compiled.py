"""Decoder layers through torch.compile, one by one: regions that are the same for all layers, so one compilation serves all.

Nothing asynchronous enters a compiled region: torch 2.13 gives the embedding a gradient of zero where a collective's tensor
is still under way then. FSDP2's hooks, DeepSpeed's and the pipeline's receives all end outside and before it.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from models.decoder import DecoderLayer
from parallel.config import ParallelConfig
from parallel.shapes import MOST_COMPILED

BACKEND = "inductor"


def compile_blocks(blocks: Iterable[nn.Module], config: ParallelConfig) -> None:
    """Compile the decoder layers among some blocks at their first use, where the configuration says so."""
    if config.compile == "none":
        return
    torch.compiler.reset()  # what an earlier phase compiled would count against the limit of variants
    # each length in training, validation and sampling; beyond the limit a compiled layer is an error (`compile_arithmetic`)
    torch._dynamo.config.recompile_limit = 4 * MOST_COMPILED
    for block in blocks:
        if isinstance(block, DecoderLayer):
            block.compile_arithmetic(BACKEND)
