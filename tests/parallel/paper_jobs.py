"""Ranks on paper, in a process that never meets a real process group."""

from __future__ import annotations

import math
from typing import Any

from launcher.schema import build
from models.config import ModelConfig
from parallel.config import ParallelConfig
from parallel.paper import build_rank


def on_paper(
    model: dict[str, Any], parallel: dict[str, Any], world: int, ranks: list[int], sequence: int
) -> list[dict[str, Any]]:
    """What each of these ranks holds and owns: its parts of tensors that are cut, and the others where it is tensor rank 0."""
    config, layout = build(ModelConfig, model), ParallelConfig(**parallel)
    found = []
    for rank in ranks:
        built = build_rank(config, layout, world, rank, sequence)
        owned = sum(
            math.prod(shape)
            for name, shape in built.shapes.items()
            if (name in built.cut or built.place.tensor == 0) and not name.endswith("(copy)")
        )
        counts = {"held": built.held, "owned": owned, "experts": built.experts}
        found.append({"rank": rank, **counts, "place": dict(vars(built.place)), "blocks": built.blocks})
    return found
