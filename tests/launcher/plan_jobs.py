"""What ranks do in the tests of plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.bench.counting import Counted
from launcher.bench.plan_layouts import Layout
from launcher.bench.plan_memory import batch_for, measure, spec_for
from parallel.checkpoint.store import Store
from parallel.checkpoint.writer import Saver
from parallel.engines.select import build_engine
from parallel.mesh import Mesh


def count_layouts(layouts: list[Layout]) -> list[Counted]:
    """Counted bytes of this rank at each layout."""
    return [measure(layout)[0] for layout in layouts]


def save(layout: Layout, directory: str, attempt: str) -> dict[str, Any]:
    """Train a step and save; bytes of the pieces that this rank wrote."""
    mesh = Mesh(layout.parallel, torch.device("cpu"))
    engine = build_engine(spec_for(layout, mesh), mesh)
    engine.step(batch_for(layout, mesh), 1e-4)
    pieces = engine.pieces(for_saving=True)
    saver = Saver(Store(Path(directory), mesh.rank, mesh.world_size, attempt), asynchronous=False)
    saver.save(1, pieces, {"counters": {}})
    saver.close(60)
    engine.close()
    mesh.close()
    return {"saved": sum(piece.tensor.nbytes for piece in pieces)}
