"""Whatever cutting is saved, any other cutting loads the same bits."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_cases import bits, blank, cut, random_bits, random_tensors, rows, save_all, save_whole, savers, views
from safetensors import safe_open

from parallel.checkpoint import files
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import Store


@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (1, 3), (4, 1), (3, 5), (8, 2), (2, 8)])
@pytest.mark.parametrize("verify", [True, False])
def test_any_cutting_loads_any_other_bitwise(
    tmp_path: Path, rng: random.Random, writers: int, readers: int, verify: bool
) -> None:
    tensors = random_tensors(rng)
    state = {"tokens": 12345, "nested": {"lr": 0.1, "seen": [1, 2.5, None, "é"]}}
    events = save_all(savers(tmp_path, writers), 7, cut(rng, tensors, writers), state)
    assert [event.message for event in events] == [""] * writers
    filled = blank(tensors)
    assert any(bits(filled[name]) != bits(tensors[name]) for name in tensors)
    for rank, part in enumerate(views(filled, cut(rng, tensors, readers))):
        assert load(Store(tmp_path).path(7), part, verify=verify, rank=rank) == state
    for name, tensor in tensors.items():
        assert bits(filled[name]) == bits(tensor), (name, tensor.dtype, tensor.shape)


def test_pieces_larger_than_a_chunk(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing and hashing go chunk by chunk; the chunks here divide nothing."""
    monkeypatch.setattr(files, "CHUNK", 37)
    tensors = {"w": random_bits(rng, (61, 7), torch.bfloat16), "v": random_bits(rng, (37,), torch.uint8)}
    save_all(savers(tmp_path, 2), 1, cut(rng, tensors, 2))
    Store(tmp_path).verify(1)
    filled = blank(tensors)
    load(Store(tmp_path).path(1), views(filled, cut(rng, tensors, 1))[0])
    assert all(bits(filled[name]) == bits(tensor) for name, tensor in tensors.items())


def test_dtypes_convert_on_load(tmp_path: Path) -> None:
    whole = torch.linspace(-3, 3, 24).reshape(6, 4)
    save_all(savers(tmp_path, 2), 1, rows(whole, 2))
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        target = torch.zeros(6, 4, dtype=dtype)
        load(Store(tmp_path).path(1), [Piece("w", (6, 4), (0, 0), target)])
        assert bits(target) == bits(whole.to(dtype))


def test_files_are_plain_safetensors(tmp_path: Path, rng: random.Random) -> None:
    """An independent reader finds the same bits, and each piece says where it belongs."""
    tensors = random_tensors(rng)
    save_all(savers(tmp_path, 2), 3, cut(rng, tensors, 2))
    seen = 0
    for rank in range(2):
        with safe_open(Store(tmp_path).path(3) / f"rank_{rank:05d}.safetensors", "pt") as file:
            about = file.metadata()
            for key in file.keys():  # noqa: SIM118 (safe_open is no dictionary)
                info = json.loads(about[key])
                got, whole = file.get_tensor(key), tensors[info["name"]]
                assert tuple(info["shape"]) == tuple(whole.shape)
                dtype = getattr(torch, info["dtype"])
                if got.dtype != dtype:  # a dtype that safetensors cannot name: bytes, in one more dim
                    got = got.contiguous().view(-1).view(dtype).reshape(got.shape[:-1])
                window = tuple(slice(o, o + n) for o, n in zip(info["offset"], got.shape, strict=True))
                assert bits(got) == bits(whole[window])
                seen += got.numel()
    assert seen == sum(t.numel() for t in tensors.values())


def test_parameters_that_require_gradients_load(tmp_path: Path) -> None:
    save_whole(tmp_path, [5])
    target = torch.nn.Parameter(torch.zeros(6, 4))
    load(Store(tmp_path).path(5), [Piece("w", (6, 4), (0, 0), target)])
    assert bool((target == 5).all())


def test_missing_names_and_other_shapes_change_nothing(tmp_path: Path) -> None:
    save_whole(tmp_path, [5])
    path = Store(tmp_path).path(5)
    good, bad = torch.zeros(6, 4), torch.zeros(8, 4)
    with pytest.raises(CheckpointError, match=r"w is \[6, 4\] there and \[8, 4\] here"):
        load(path, [Piece("w", (8, 4), (0, 0), bad)])
    wanted = [Piece("w", (6, 4), (0, 0), good), *(Piece(f"other.{i}", (1,), (0,), torch.zeros(1)) for i in range(9))]
    with pytest.raises(CheckpointError, match=r"lacks 9 tensors: other.0, .* and 4 more") as caught:
        load(path, wanted)
    assert not isinstance(caught.value, CheckpointCorrupt), "a wrong model is no reason to fall back"
    assert not good.any() and not bad.any()
    load(path, wanted, strict=False)
    assert bool((good == 5).all()) and not wanted[1].tensor.any()


def test_a_resume_at_the_same_layout_reads_its_own_file_alone(tmp_path: Path) -> None:
    save_whole(tmp_path, [5], ranks=3)
    path = Store(tmp_path).path(5)
    for rank in (0, 2):
        (path / f"rank_{rank:05d}.safetensors").unlink()
        (path / f"rank_{rank:05d}.json").unlink()
    target = torch.zeros(2, 4)
    load(path, [Piece("w", (6, 4), (2, 0), target)], rank=1)
    assert bool((target == 5).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts[1].clear(), "hold 12 of its 24 elements"),
        (lambda parts: parts[1].append(parts[0][0]), "overlap"),
        (lambda parts: parts[1].__setitem__(0, Piece("w", (6, 4), (3, 0), torch.zeros(3, 4).half())), "float16"),
    ],
)
def test_pieces_that_make_up_no_whole_tensor_are_never_committed(
    tmp_path: Path, change: Callable[[list[list[Piece]]], None], message: str
) -> None:
    parts = rows(torch.ones(6, 4), 2)
    change(parts)
    events = save_all(savers(tmp_path, 2), 1, parts)
    assert not any(event.committed for event in events)
    assert all(message in event.message for event in events), "rank 0's reason reaches every rank"
    assert Store(tmp_path).latest() is None


def test_a_caller_s_mistakes_are_raised_at_once(tmp_path: Path) -> None:
    (saver,) = savers(tmp_path, 1)
    with pytest.raises(ValueError, match="given twice"):
        saver.save(1, [Piece("w", (2,), (0,), torch.zeros(2))] * 2)
    with pytest.raises(CheckpointError, match=r"state\['rng'\] is not JSON"):
        saver.save(1, [], {"fine": 1, "rng": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="no attempt"):
        type(saver)(Store(tmp_path)).save(1, [])
    saver.close()
    with pytest.raises(CheckpointError, match="closed"):
        saver.save(1, [])


def test_state_is_frozen_when_save_returns(tmp_path: Path) -> None:
    (saver,) = savers(tmp_path, 1)
    state = {"counters": {"step": 1}}
    saver.save(1, [], state)
    state["counters"]["step"] = 2
    saver.wait()
    assert read_state(Store(tmp_path).path(1)) == {"counters": {"step": 1}}
