"""No altered byte is loaded, and every one is named."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_cases import bits, save_whole

from parallel.checkpoint.durable import seal
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError, ForeignVersion
from parallel.checkpoint.inspect import verify_text
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load
from parallel.checkpoint.store import Store, resolve

FILES = ("rank_00000.safetensors", "rank_00001.safetensors", "rank_00000.json", "rank_00001.json", "manifest.json")


def _load(path: Path) -> torch.Tensor:
    target = torch.zeros(6, 4)
    load(path, [Piece("w", (6, 4), (0, 0), target)])
    return target


def _flip(file: Path, at: int, bit: int) -> None:
    with open(file, "r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found_and_named(tmp_path: Path, rng: random.Random, name: str) -> None:
    """All bytes: length and text of headers, padding, data, checksums, commas."""
    save_whole(tmp_path, [100])
    path = Store(tmp_path).path(100)
    for at in range((path / name).stat().st_size):
        bit = rng.randrange(8)
        _flip(path / name, at, bit)
        with pytest.raises(CheckpointCorrupt, match=name):
            _load(path)
        _flip(path / name, at, bit)
    assert bool((_load(path) == 100).all())


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _extend(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def _exchange(file: Path) -> None:
    """The same file of an older checkpoint: right in itself, wrong here."""
    shutil.copy(file.parent.parent / "step_000000100" / file.name, file)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flip": lambda file: _flip(file, file.stat().st_size // 2, 3),
    "truncate": _truncate,
    "empty": lambda file: os.truncate(file, 0),
    "extend": _extend,
    "delete": lambda file: file.unlink(),
    "exchange": _exchange,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_one_before_serves(tmp_path: Path, name: str, damage: str) -> None:
    save_whole(tmp_path, [100, 200])
    store = Store(tmp_path)
    DAMAGE[damage](store.path(200) / name)

    with pytest.raises(CheckpointCorrupt, match=name):
        _load(store.path(200))
    with pytest.raises(CheckpointCorrupt, match=name):
        store.latest(fall_back=False, verify=True)
    found = store.latest(verify=True)
    assert found is not None and found.step == 100
    assert bool((_load(found.path) == 100).all())

    if name != "manifest.json":
        text, good = verify_text(tmp_path, 200)
        assert not good
        assert all(
            ("ok" in line) == (not line.startswith(name)) for line in text.splitlines() if line.startswith("rank")
        )
    aside = store.quarantine(200)
    assert aside.name == "step_000000200.corrupt" and aside.is_dir()
    newest = store.latest(fall_back=False)
    assert newest is not None and newest.step == 100


def test_a_run_is_not_started_anew_over_its_own_wreck(tmp_path: Path) -> None:
    assert Store(tmp_path / "none").latest() is None
    save_whole(tmp_path, [100])
    store = Store(tmp_path)
    (store.path(100) / FILES[0]).unlink()
    with pytest.raises(CheckpointCorrupt, match="none of its 1 checkpoints is whole"):
        store.latest()
    store.quarantine(100)
    with pytest.raises(CheckpointCorrupt, match="put aside"):
        store.latest()


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        (".metadata", "torch distributed"),
        ("config.json", "Hugging Face"),
        ("latest", "DeepSpeed"),
        ("x", "not a Triaxis"),
    ],
)
def test_a_foreign_directory_is_named(tmp_path: Path, marker: str, words: str) -> None:
    (tmp_path / marker).write_text("{}")
    for attempt in (lambda: _load(tmp_path), lambda: resolve(tmp_path)):
        with pytest.raises(CheckpointError, match=words) as caught:
            attempt()
        assert str(tmp_path) in str(caught.value)


def test_another_format_version_is_refused_not_passed_over(tmp_path: Path) -> None:
    save_whole(tmp_path, [100, 200])
    store = Store(tmp_path)
    (store.path(200) / "manifest.json").write_bytes(seal({"version": 2, "new": True}))
    with pytest.raises(ForeignVersion, match="version 2"):
        store.latest(fall_back=True)
    with pytest.raises(ForeignVersion, match="version 2"):
        _load(store.path(200))


def test_verify_can_be_shared_among_ranks(tmp_path: Path) -> None:
    save_whole(tmp_path, [100], ranks=3)
    store = Store(tmp_path)
    _flip(store.path(100) / "rank_00001.safetensors", 100, 1)
    bad = []
    for part in range(3):
        try:
            store.verify(100, part=part, parts=3)
        except CheckpointCorrupt:
            bad.append(part)
    assert len(bad) == 1


def test_without_verification_structure_is_still_checked(tmp_path: Path) -> None:
    """verify=False trusts data bytes only: a flipped index or a short file is found even then."""
    save_whole(tmp_path, [100])
    path = Store(tmp_path).path(100)
    target = torch.zeros(6, 4)
    _flip(path / "rank_00000.safetensors", (path / "rank_00000.safetensors").stat().st_size - 1, 0)
    load(path, [Piece("w", (6, 4), (0, 0), target)], verify=False)
    assert bits(target) != bits(torch.full((6, 4), 100.0))
    _flip(path / "rank_00000.json", 300, 0)
    with pytest.raises(CheckpointCorrupt):
        load(path, [Piece("w", (6, 4), (0, 0), target)], verify=False)
