"""The geometry of pieces, against numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from parallel.checkpoint.pieces import (
    Piece,
    blocks,
    check_piece,
    intersect,
    overlapping,
    rectangles_of_range,
    volume,
    window,
)


def _shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 4)))


def test_rectangles_of_range_tile_the_range_in_flat_order(rng: random.Random) -> None:
    for _ in range(400):
        shape = _shape(rng)
        start = rng.randint(0, volume(shape))
        stop = rng.randint(start, volume(shape))
        whole = np.arange(volume(shape)).reshape(shape)
        found: list[int] = []
        for offset, extent, at in rectangles_of_range(shape, start, stop):
            assert at == len(found)
            cell = whole[tuple(slice(o, o + n) for o, n in zip(offset, extent, strict=True))]
            assert cell.shape == extent
            found.extend(cell.reshape(-1).tolist())
        assert found == list(range(start, stop))


def test_rectangles_are_few() -> None:
    """A partition of a matrix is at most a partial row, full rows, a partial row."""
    assert len(list(rectangles_of_range((1000, 7), 3, 6995))) == 3
    assert len(list(rectangles_of_range((1000, 7), 7, 6993))) == 1
    assert list(rectangles_of_range((), 0, 1)) == [((), (), 0)]
    assert not list(rectangles_of_range((4, 4), 5, 5))


def test_intersect_and_overlapping_against_masks(rng: random.Random) -> None:
    for _ in range(300):
        shape = _shape(rng)
        boxes = []
        for _ in range(rng.randint(1, 4)):
            offset = tuple(rng.randrange(n) for n in shape)
            boxes.append((offset, tuple(rng.randint(1, n - o) for n, o in zip(shape, offset, strict=True))))
        counts = np.zeros(shape, dtype=int)
        for box in boxes:
            counts[window(box, ((0,) * len(shape), shape))] += 1
        assert (overlapping(boxes) is not None) == bool((counts > 1).any())
        both = np.zeros(shape, dtype=int)
        if len(boxes) > 1:
            for box in boxes[:2]:
                both[window(box, ((0,) * len(shape), shape))] += 1
            shared = intersect(boxes[0], boxes[1])
            assert (volume(shared[1]) if shared else 0) == int((both == 2).sum())


def test_scalars_meet() -> None:
    assert intersect(((), ()), ((), ())) == ((), ())
    assert overlapping([((), ()), ((), ())]) is not None
    assert overlapping([((), ())]) is None


@pytest.mark.parametrize(
    ("shape", "offset", "extent"), [((4, 4), (3, 0), (2, 4)), ((4,), (-1,), (2,)), ((4,), (0, 0), (2,))]
)
def test_a_piece_outside_its_tensor_is_refused(
    shape: tuple[int, ...], offset: tuple[int, ...], extent: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="piece w: a rectangle"):
        check_piece(Piece("w", shape, offset, torch.zeros(extent)))


def test_blocks_are_rows_that_make_up_the_piece() -> None:
    whole = torch.arange(7 * 6.0).view(7, 6)
    piece = Piece("w", (20, 30), (3, 5), whole)
    for limit, count in ((24, 7), (10, 7), (71, 4), (72, 3), (168, 1)):
        parts = list(blocks(piece, limit))
        assert len(parts) == count
        assert torch.equal(torch.cat([part.tensor for part in parts]), whole)
        assert [part.offset[0] for part in parts] == [3 + sum(len(p.tensor) for p in parts[:i]) for i in range(count)]
        assert all(part.offset[1] == 5 and (part.tensor.nbytes <= limit or len(part.tensor) == 1) for part in parts)
    (scalar,) = blocks(Piece("s", (), (), torch.zeros(())), 1)
    assert scalar.shape == ()
