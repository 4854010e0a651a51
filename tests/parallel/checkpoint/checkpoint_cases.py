"""Random tensors, random cuttings of them over ranks, and saves by many ranks in one process."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parallel.checkpoint.pieces import Piece, rectangles_of_range, volume
from parallel.checkpoint.store import Retention, Store
from parallel.checkpoint.writer import SaveEvent, Saver

DTYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.int8,
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu, torch.uint16, torch.complex64, torch.bool,
)  # fmt: skip
SHAPES = ((), (1,), (17,), (5, 7), (64, 33), (3, 4, 5), (1, 129), (129, 1), (2, 3, 4, 5), (0,), (0, 6))


def random_bits(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Any bit pattern at all: NaNs with payloads, infinities, denormals."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    raw = torch.randint(0, 256, (volume(shape) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    if dtype == torch.bool:
        raw &= 1
    return raw.view(dtype).reshape(shape)


def random_tensors(rng: random.Random) -> dict[str, Tensor]:
    """Every shape with one dtype and every dtype with one shape at least."""
    pairs = [(shape, rng.choice(DTYPES)) for shape in SHAPES] + [(rng.choice(SHAPES), dtype) for dtype in DTYPES]
    return {f"layers.{i}.weight": random_bits(rng, shape, dtype) for i, (shape, dtype) in enumerate(pairs)}


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _grid(rng: random.Random, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut along some dims at random places."""
    axes = []
    for size in shape:
        cuts = sorted(rng.sample(range(1, size), min(rng.randrange(3), size - 1))) if size > 1 else []
        edges = [0, *cuts, size]
        axes.append([(a, b - a) for a, b in itertools.pairwise(edges)])
    return [(tuple(o for o, _ in cell), tuple(n for _, n in cell)) for cell in itertools.product(*axes)]


def _flat(rng: random.Random, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut as ZeRO does: at random places of the flattened tensor."""
    count = volume(shape)
    cuts = sorted(rng.sample(range(1, count), min(rng.randrange(4), count - 1))) if count > 1 else []
    spans = itertools.pairwise([0, *cuts, count])
    return [(o, n) for a, b in spans for o, n, _ in rectangles_of_range(shape, a, b)]


def cut(rng: random.Random, tensors: dict[str, Tensor], ranks: int) -> list[list[Piece]]:
    """A random partition of every tensor over the ranks: each element once. Pieces are views or copies."""
    parts: list[list[Piece]] = [[] for _ in range(ranks)]
    for name, whole in tensors.items():
        shape = tuple(whole.shape)
        boxes = [((0,) * len(shape), shape)] if volume(shape) == 0 else rng.choice((_grid, _flat))(rng, shape)
        for offset, extent in boxes:
            view = whole[tuple(slice(o, o + n) for o, n in zip(offset, extent, strict=True))]
            tensor = view if rng.random() < 0.5 else view.clone()
            parts[rng.randrange(ranks)].append(Piece(name, shape, offset, tensor))
    return parts


def blank(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Same shapes and dtypes, other bits."""
    return {name: (~t.reshape(-1).view(torch.uint8) & 1).view(t.dtype).reshape(t.shape) for name, t in tensors.items()}


def views(tensors: dict[str, Tensor], parts: list[list[Piece]]) -> list[list[Piece]]:
    """The same cutting as `parts`, as views of `tensors`, so that filling the pieces fills those."""
    return [
        [
            Piece(p.name, p.shape, p.offset, tensors[p.name][tuple(
                slice(o, o + n) for o, n in zip(p.offset, p.tensor.shape, strict=True)
            )])
            for p in part
        ]
        for part in parts
    ]  # fmt: skip


def savers(directory: Path, ranks: int, *, retention: Retention | None = None, **options: Any) -> list[Saver]:
    """A new attempt of a run with so many ranks; options are those of Saver."""
    attempt = Store(directory, 0, ranks).open_attempt()
    stores = [Store(directory, rank, ranks, attempt) for rank in range(ranks)]
    options.setdefault("timeout", 20.0)
    return [Saver(store, retention=retention, **options) for store in stores]


def save_all(
    many: list[Saver], step: int, parts: list[list[Piece]], state: dict[str, Any] | None = None
) -> list[SaveEvent]:
    """One save by all ranks, to its end."""
    for saver, part in zip(many, parts, strict=True):
        saver.save(step, part, state or {})
    for saver in many:
        saver.wait()
    events = [saver.poll() for saver in many]
    assert all(len(each) == 1 for each in events)
    return [each[0] for each in events]


def save_whole(directory: Path, steps: list[int], ranks: int = 2, size: int = 6) -> list[Saver]:
    """Committed checkpoints of one tensor `w` (size × 4, float32) filled with the step, cut by rows."""
    many = savers(directory, ranks)
    for step in steps:
        events = save_all(many, step, rows(torch.full((size, 4), float(step)), ranks), {"tokens": step * 1000})
        assert all(event.committed for event in events), events
    return many


def rows(whole: Tensor, ranks: int, name: str = "w") -> list[list[Piece]]:
    """Cut a matrix by rows, evenly."""
    each = whole.shape[0] // ranks
    return [[Piece(name, tuple(whole.shape), (r * each, 0), whole[r * each : (r + 1) * each])] for r in range(ranks)]
