"""Saving beside training: isolation, one in flight, failures as events, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_cases import rows, save_all, save_whole, savers

from parallel.checkpoint import files, writer
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import Retention, Store


def _value(store: Store, step: int) -> torch.Tensor:
    target = torch.zeros(6, 4)
    load(store.path(step), [Piece("w", (6, 4), (0, 0), target)])
    return target


def _slow(monkeypatch: pytest.MonkeyPatch, gate: threading.Event) -> None:
    """Make the writing thread wait for the gate."""
    write = writer.write_rank

    def gated(*args: Any) -> Any:
        assert gate.wait(20)
        return write(*args)

    monkeypatch.setattr(writer, "write_rank", gated)


def test_training_may_change_tensors_as_soon_as_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    _slow(monkeypatch, gate)
    (saver,) = savers(tmp_path, 1)
    whole = torch.ones(6, 4)
    saver.save(1, rows(whole, 1)[0])
    whole.fill_(2)
    assert saver.poll() == [] and not saver.wait(0.01) and Store(tmp_path).latest() is None
    gate.set()
    assert saver.wait(20)
    (event,) = saver.poll()
    assert event.committed and event.step == 1 and event.seconds >= event.stall > 0
    assert event.size == os.stat(Store(tmp_path).path(1) / "rank_00000.safetensors").st_size
    assert bool((_value(Store(tmp_path), 1) == 1).all())


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    _slow(monkeypatch, gate)
    (saver,) = savers(tmp_path, 1)
    saver.save(1, rows(torch.full((6, 4), 1.0), 1)[0])
    threading.Timer(0.2, gate.set).start()
    stall = saver.save(2, rows(torch.full((6, 4), 2.0), 1)[0])
    assert stall >= 0.15
    saver.close()
    first, second = saver.poll()
    assert (first.step, second.step) == (1, 2) and first.committed and second.committed
    assert first.waited < 0.1 < second.waited <= second.stall
    assert [bool((_value(Store(tmp_path), step) == step).all()) for step in (1, 2)] == [True, True]


def test_the_staging_buffer_is_reused_and_may_change_its_layout(tmp_path: Path) -> None:
    (saver,) = savers(tmp_path, 1)
    saver.reserve(rows(torch.zeros(6, 4), 1)[0])
    address = saver._staging.buffer.data_ptr()
    for step, whole in enumerate(
        [torch.rand(6, 4), torch.rand(6, 4), torch.rand(3, 8).bfloat16(), torch.rand(2, 4)], 1
    ):
        target = torch.zeros_like(whole)
        save_all([saver], step, rows(whole, 1))
        load(Store(tmp_path).path(step), [Piece("w", tuple(whole.shape), (0, 0), target)])
        assert torch.equal(target, whole)
        assert saver._staging.buffer.data_ptr() == address
    save_all([saver], 9, rows(torch.rand(60, 4), 1))
    assert saver.poll() == [] and Store(tmp_path).list()[-1].whole


def test_synchronous_saves_are_committed_on_return(tmp_path: Path) -> None:
    (saver,) = savers(tmp_path, 1, asynchronous=False)
    saver.save(4, rows(torch.ones(6, 4), 1)[0], {"tokens": 9})
    assert saver.poll()[0].committed
    assert read_state(Store(tmp_path).path(4)) == {"tokens": 9}


def test_no_space_is_an_event_and_the_next_save_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank's disk is full in the middle of its file; all ranks hear why, nothing stays behind."""
    many = save_whole(tmp_path, [1])
    write = files.write_data

    def full(path: Path, *args: Any) -> Any:
        if "rank_00001" in path.name:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_data", full)
        events = save_all(many, 2, rows(torch.full((6, 4), 2.0), 2))
    assert not any(event.committed for event in events)
    assert "disk full" in events[0].message and "rank 1 failed" in events[0].message
    assert "disk full" in events[1].message and "free space" in events[1].message
    assert [found.step for found in Store(tmp_path).list()] == [1]
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "step_000000001"]
    assert all(event.committed for event in save_all(many, 2, rows(torch.full((6, 4), 2.0), 2)))
    assert bool((_value(Store(tmp_path), 2) == 2).all())


@contextlib.contextmanager
def _tiny_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("may not mount a tmpfs; the simulated disk-full test covers this")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a tmpfs; the simulated disk-full test covers this")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    with _tiny_disk(tmp_path / "disk"):
        directory = tmp_path / "disk" / "checkpoints"
        many = savers(directory, 2)
        small = torch.ones(6, 4)
        assert all(event.committed for event in save_all(many, 1, rows(small, 2)))
        events = save_all(many, 2, rows(torch.zeros(1000, 1000), 2))
        assert not any(event.committed for event in events)
        assert "disk full" in events[0].message + events[1].message
        assert [found.step for found in Store(directory).list() if found.whole] == [1]
        events = save_all(many, 3, rows(small * 3, 2))
        assert all(event.committed for event in events), (events, sorted(directory.rglob("*")))
        assert bool((_value(Store(directory), 3) == 3).all())


def test_a_rank_that_never_writes_costs_the_save_not_the_run(tmp_path: Path) -> None:
    many = savers(tmp_path, 2, timeout=0.3)
    parts = rows(torch.ones(6, 4), 2)
    many[0].save(1, parts[0])
    assert many[0].wait(10)
    (event,) = many[0].poll()
    assert not event.committed and "1 of 2 ranks (first: 1) had not written" in event.message

    many[1].save(1, parts[1])  # comes when rank 0 has given up: told so, and leaves nothing
    many[1].wait()
    assert many[1].poll()[0].message == event.message
    assert Store(tmp_path).latest() is None
    assert all(each.committed for each in save_all(many, 2, parts))


def test_rank_0_that_dies_does_not_hold_the_others_for_ever(tmp_path: Path) -> None:
    many = savers(tmp_path, 2, timeout=0.3)
    many[1].save(1, rows(torch.ones(6, 4), 2)[1])
    assert many[1].wait(10)
    assert "rank 0 did not commit within" in many[1].poll()[0].message


def test_an_unexpected_error_is_an_event_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("cosmic ray")

    (saver,) = savers(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_rank", broken)
        (event,) = save_all([saver], 1, rows(torch.ones(6, 4), 1))
    assert not event.committed and "RuntimeError: cosmic ray" in event.message
    assert save_all([saver], 2, rows(torch.ones(6, 4), 1))[0].committed


def test_retention_that_fails_does_not_undo_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "bad disk")

    (saver,) = savers(tmp_path, 1, retention=Retention(keep_last=1))
    monkeypatch.setattr(saver.store, "retain", broken)
    (event,) = save_all([saver], 1, rows(torch.ones(6, 4), 1))
    assert event.committed and "could not be removed" in event.message


def test_many_saves_by_ranks_that_drift(tmp_path: Path) -> None:
    """Ranks reach their saves at different times, as pipeline stages do; every checkpoint is of one step."""
    ranks, steps = 3, range(1, 9)
    many = savers(tmp_path, ranks)

    def train(rank: int) -> None:
        for step in steps:
            time.sleep(0.01 * ((rank * 7 + step * 3) % 4))
            many[rank].save(step, rows(torch.full((6, 4), float(step)), ranks)[rank], {"step": step})
        many[rank].close()

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = Store(tmp_path)
    for saver in many:
        assert [(event.step, event.committed) for event in saver.poll()] == [(step, True) for step in steps]
    for step in steps:
        assert bool((_value(store, step) == step).all()) and read_state(store.path(step)) == {"step": step}


def test_a_part_of_another_save_is_not_taken(tmp_path: Path) -> None:
    many = savers(tmp_path, 2)
    many[1].store.world_size = 3
    events = save_all(many, 1, rows(torch.ones(6, 4), 2))
    assert not any(event.committed for event in events)
    assert all("belongs to another save" in event.message for event in events)


def test_a_part_that_shrank_before_the_commit_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that lost data although fsync succeeded."""
    write = files.write_data

    def lossy(path: Path, *args: Any) -> Any:
        result = write(path, *args)
        if "rank_00001" in path.name:
            os.truncate(path, 100)
        return result

    monkeypatch.setattr(files, "write_data", lossy)
    events = save_all(savers(tmp_path, 2), 1, rows(torch.ones(6, 4), 2))
    assert not any(event.committed for event in events)
    assert "has 100 bytes, but its rank wrote" in events[0].message
