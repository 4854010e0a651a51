"""What ranks do in the tests of state: pieces at the beginning, after steps, saved and loaded."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from parallel.checkpoint.manifest import read_index, read_manifest
from parallel.checkpoint.pieces import Piece, box_of, intersect, volume
from parallel.checkpoint.reader import load
from parallel.checkpoint.store import Store
from parallel.checkpoint.writer import Saver
from parallel.engines.base import Engine
from parallel.engines.select import build_engine
from parallel.mesh import Mesh
from tests.parallel.cases import Case
from tests.parallel.jobs import CPU, Curve, digest, laid_out, run_steps, spec_of


@dataclass(frozen=True)
class Part:
    """A piece with its own copy of the numbers, to be sent to the parent."""

    name: str
    shape: tuple[int, ...]
    offset: tuple[int, ...]
    tensor: Tensor


def parts(pieces: list[Piece]) -> list[Part]:
    """Copies of some pieces."""
    return [Part(p.name, tuple(p.shape), tuple(p.offset), p.tensor.detach().clone()) for p in pieces]


def assemble(ranks: list[list[Part]]) -> dict[str, Tensor]:
    """Whole tensors from the pieces of all ranks, each element of which must be given exactly once."""
    whole: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    for part in (part for rank in ranks for part in rank):
        tensor = whole.setdefault(part.name, torch.full(part.shape, float("nan"), dtype=part.tensor.dtype))
        count = given.setdefault(part.name, torch.zeros(part.shape, dtype=torch.int32))
        assert tensor.shape == part.shape, f"{part.name}: pieces of {tuple(tensor.shape)} and of {part.shape}"
        window = tuple(slice(o, o + n) for o, n in zip(part.offset, part.tensor.shape, strict=True))
        assert tensor[window].shape == part.tensor.shape, f"{part.name}: a piece beyond the edge"
        tensor[window] = part.tensor
        count[window] += 1
    for name, count in given.items():
        low, high = int(count.min()), int(count.max())
        assert low == high == 1, f"{name}: elements are given between {low} and {high} times"
    return whole


def saved_pieces(case: Case, steps: int) -> list[Part]:
    """What this rank would save after some steps."""
    with laid_out(case) as (engine, mesh):
        run_steps(case, engine, mesh, range(steps), Curve())
        return parts(engine.pieces(for_saving=True))


@dataclass
class Resumed(Curve):
    """A curve that went on from a checkpoint, and a hash of what was loaded, all state bits of this rank."""

    loaded: str = ""
    parts: list[Part] = field(default_factory=list)


def train_and_save(case: Case, directory: Path, steps: int, further: int) -> Resumed:
    """Train, save, note the bits, and go on."""
    curve = Resumed()
    with laid_out(case) as (engine, mesh):
        run_steps(case, engine, mesh, range(steps), Curve())
        save(engine, mesh, directory, steps)
        curve.loaded, curve.parts = digest(engine), parts(engine.pieces(for_saving=True))
        run_steps(case, engine, mesh, range(steps, steps + further), curve)
        curve.state = engine.state()
    return curve


def load_and_train(case: Case, directory: Path, steps: int, further: int) -> Resumed:
    """Begin with other weights than were saved, load, note the bits, and go on."""
    curve = Resumed()
    with laid_out(case) as (engine, mesh):
        _muddle(engine)
        told = load(Store(directory).path(steps), engine.pieces(for_saving=False), rank=mesh.rank)
        engine.loaded(told["engine"])
        curve.loaded, curve.parts = digest(engine), parts(engine.pieces(for_saving=True))
        run_steps(case, engine, mesh, range(steps, steps + further), curve)
        curve.state = engine.state()
    return curve


def save(engine: Engine, mesh: Mesh, directory: Path, step: int) -> None:
    """Write a checkpoint as a run does; raises where it was not committed."""
    attempt = [Store(directory).open_attempt() if mesh.rank == 0 else None]
    if mesh.world_size > 1:
        dist.broadcast_object_list(attempt, src=0)
    saver = Saver(Store(directory, mesh.rank, mesh.world_size, attempt[0]), timeout=60)
    saver.save(step, engine.pieces(for_saving=True), {"engine": engine.state()})
    saver.close()
    (event,) = saver.poll()
    assert event.committed, event.message


def share_in_own_file(case: Case, path: Path) -> float:
    """Share of the elements that this rank loads that lie in the file of its own number."""
    with laid_out(case) as (engine, mesh):
        wanted = engine.pieces(for_saving=False)
        held = read_index(path, read_manifest(path), mesh.rank).pieces
        shared = [intersect(box_of(piece), saved.box) for piece in wanted for saved in held if saved.name == piece.name]
        found = sum(volume(box[1]) for box in shared if box)
        return found / sum(piece.tensor.numel() for piece in wanted)


class _Allocations(TorchDispatchMode):
    """Notes the number of elements of the largest floating-point tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if torch.is_tensor(tensor) and tensor.is_floating_point() and not tensor.is_meta:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def allocations(case: Case) -> tuple[int, int]:
    """(elements of the largest tensor made, elements of parameters held): under DeepSpeed until it takes the model over."""

    class Seen(Exception):
        """Carries on nothing: what follows is DeepSpeed's own."""

    found: list[int] = []

    def take_over(model: torch.nn.Module, **options: Any) -> None:
        found.append(sum(getattr(p, "ds_tensor", p).numel() for p in model.parameters()))
        raise Seen

    mesh = Mesh(case.parallel, CPU)
    with _Allocations() as made, mock.patch("deepspeed.initialize", take_over), contextlib.suppress(Seen):
        found.append(
            sum(parameter.numel() for _, parameter in build_engine(spec_of(case, mesh), mesh).named_parameters())
        )
    mesh.close()
    return made.largest, found[0]


@torch.no_grad()
def _muddle(engine: Engine) -> None:
    """Write other numbers over all state, so that what is not loaded is seen."""
    for piece in engine.pieces(for_saving=False):
        piece.tensor.fill_(0.123)
