"""Attempts, fencing, retention, finding."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from checkpoint_cases import rows, save_all, save_whole, savers

from parallel.checkpoint.errors import CheckpointError
from parallel.checkpoint.inspect import inspect_text, list_text, verify_text
from parallel.checkpoint.pieces import Piece
from parallel.checkpoint.reader import load
from parallel.checkpoint.store import Retention, Store, resolve
from parallel.checkpoint.verify import hold


def _steps(directory: Path) -> list[int]:
    return [found.step for found in Store(directory).list()]


def _value(path: Path) -> float:
    target = torch.zeros(6, 4)
    load(path, [Piece("w", (6, 4), (0, 0), target)])
    assert len(target.unique()) == 1
    return target[0, 0].item()


def test_attempts_are_numbered(tmp_path: Path) -> None:
    first, second = Store(tmp_path).open_attempt(), Store(tmp_path).open_attempt()
    assert first.startswith("000001-") and second.startswith("000002-")
    assert Store(tmp_path).newest_attempt() == second


def test_an_older_attempt_that_still_writes_is_fenced_off(tmp_path: Path) -> None:
    old = savers(tmp_path, 2)
    assert save_all(old, 1, rows(torch.ones(6, 4), 2))[0].committed
    new = savers(tmp_path, 2)
    events = save_all(old, 2, rows(torch.zeros(6, 4), 2))
    assert not any(event.committed for event in events)
    assert all("fenced off by a newer attempt" in event.message for event in events)
    assert _steps(tmp_path) == [1]
    assert all(event.committed for event in save_all(new, 2, rows(torch.full((6, 4), 2.0), 2)))
    assert _value(Store(tmp_path).path(2)) == 2


def test_an_older_attempt_is_fenced_off_in_the_middle_of_its_save(tmp_path: Path) -> None:
    """Rank 0 of the old attempt waits for its rank 1 while a new attempt begins and commits the same step."""
    old = savers(tmp_path, 2)
    stale, fresh = rows(torch.full((6, 4), -1.0), 2), rows(torch.full((6, 4), 5.0), 2)
    old[0].save(5, stale[0])
    end = time.monotonic() + 10
    while not list(tmp_path.glob("step_*.tmp-*/rank_00000.json")) and time.monotonic() < end:
        time.sleep(0.005)
    new = savers(tmp_path, 2)
    old[1].save(5, stale[1])
    assert all(event.committed for event in save_all(new, 5, fresh))
    for saver in old:
        saver.wait()
        (event,) = saver.poll()
        assert not event.committed and "fenced off" in event.message
    assert _value(Store(tmp_path).path(5)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt", "step_000000005"]


def test_an_older_attempt_s_retention_removes_nothing(tmp_path: Path) -> None:
    old = save_whole(tmp_path, [1, 2, 3])
    savers(tmp_path, 2)
    assert old[0].store.retain(Retention(keep_last=1)) == ()
    assert _steps(tmp_path) == [1, 2, 3]


def test_a_new_attempt_cleans_what_older_ones_left(tmp_path: Path) -> None:
    many = save_whole(tmp_path, [1])
    half = many[0].store.temporary(2, 7)
    half.mkdir()
    (half / "rank_00000.safetensors").write_bytes(b"half")
    (tmp_path / ".trash-step_000000000-aa").mkdir()
    many[0].store.temporary(3, 8).write_text("given up")
    Store(tmp_path).open_attempt()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt", "step_000000001"]


def test_an_attempt_that_starts_late_spares_what_a_newer_one_writes(tmp_path: Path) -> None:
    newer = tmp_path / "step_000000007.tmp-000002-0123abcd-000001"
    newer.mkdir()
    assert Store(tmp_path).open_attempt().startswith("000001-")
    assert newer.is_dir()


def test_a_save_that_was_whole_but_for_its_name_is_committed_by_the_next_attempt(tmp_path: Path) -> None:
    """SIGKILL between the manifest and the rename; also in the middle of replacing the same step."""
    many = save_whole(tmp_path, [1, 2])
    store = many[0].store
    store.path(2).rename(store.temporary(2, 2))
    assert Store(tmp_path).latest().step == 1  # type: ignore[union-attr]
    Store(tmp_path).open_attempt()
    assert Store(tmp_path).latest().step == 2  # type: ignore[union-attr]
    assert _value(store.path(2)) == 2


def test_the_same_step_saved_again_replaces(tmp_path: Path) -> None:
    many = save_whole(tmp_path, [5])
    assert all(event.committed for event in save_all(many, 5, rows(torch.full((6, 4), 7.0), 2)))
    assert _value(Store(tmp_path).path(5)) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attempt", "step_000000005"]


def test_retention_by_rule(tmp_path: Path) -> None:
    (saver,) = savers(tmp_path, 1, retention=Retention(keep_last=2, keep_every=40))
    removed: list[int] = []
    for step in range(10, 110, 10):
        (event,) = save_all([saver], step, rows(torch.full((6, 4), float(step)), 1))
        assert event.committed
        removed += event.removed
    assert _steps(tmp_path) == [40, 80, 90, 100]
    assert removed == [10, 20, 30, 50, 60, 70]
    assert not list(tmp_path.glob(".trash*"))


def test_retention_counts_whole_checkpoints_only(tmp_path: Path) -> None:
    """Damaged newer ones never push out the newest good one."""
    save_whole(tmp_path, [1, 2, 3, 4])
    for step in (3, 4):
        (Store(tmp_path).path(step) / "rank_00001.safetensors").unlink()
    store = Store(tmp_path, attempt=Store(tmp_path).newest_attempt())
    assert store.retain(Retention(keep_last=1)) == (1,)
    assert store.latest().step == 2  # type: ignore[union-attr]


def test_what_a_reader_holds_stays(tmp_path: Path) -> None:
    save_whole(tmp_path, [1, 2, 3])
    store = Store(tmp_path, attempt=Store(tmp_path).newest_attempt())
    with hold(store.path(1)):
        assert store.retain(Retention(keep_last=1)) == (2,)
        with pytest.raises(CheckpointError, match="in use"):
            store.delete(1)
        assert _value(store.path(1)) == 1
    assert store.retain(Retention(keep_last=1)) == (1,)
    assert _steps(tmp_path) == [3]


@pytest.mark.parametrize("rule", [{"keep_last": 0}, {"keep_every": 0}, {"keep_last": -1}])
def test_impossible_rules_are_refused(rule: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match=f"checkpoint.{next(iter(rule))}={next(iter(rule.values()))}"):
        Retention(**rule)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=str(tmp_path / "file")):
        Store(tmp_path / "file" / "checkpoints").open_attempt()


def test_resolve_takes_what_users_type(tmp_path: Path) -> None:
    save_whole(tmp_path / "run" / "checkpoints", [1, 2])
    run = tmp_path / "run"
    newest = run / "checkpoints" / "step_000000002"
    assert resolve(run) == resolve(run / "checkpoints") == resolve(newest) == newest
    assert resolve(str(run), step=1).name == "step_000000001"
    with pytest.raises(CheckpointError, match="there are 1, 2"):
        resolve(run, step=3)
    with pytest.raises(CheckpointError, match="no such"):
        resolve(tmp_path / "nowhere")
    shutil.copytree(newest, tmp_path / "kept")
    assert _value(resolve(tmp_path / "kept")) == 2


def test_tables(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints"
    save_whole(directory, [1000, 2000])
    text = list_text(tmp_path)
    assert [line.split()[:2] for line in text.splitlines()[2:]] == [["1000", "1,000,000"], ["2000", "2,000,000"]]
    assert text.count("whole") == 2
    (directory / "step_000002000" / "rank_00001.json").unlink()
    assert "NOT WHOLE" in list_text(directory) and "rank_00001.json is missing" in list_text(directory)

    text = inspect_text(tmp_path, 1000)
    assert "step 1000" in text and "tokens  1000000" in text and "6×4" in text and "float32" in text
    text, good = verify_text(tmp_path, 1000)
    assert good and text.count(" ok") == 4
    text, good = verify_text(tmp_path, 2000)
    assert not good and "CORRUPT" in text

    with pytest.raises(CheckpointError, match="no such directory"):
        list_text(tmp_path / "nowhere")
