"""Moments between the command and the first step, over processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.marks import VARIABLE, begin, begin_again, born, mark, marks, write_startup


def test_parts_are_handed_on_to_a_process_and_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "stale=1.0;")
    began = time.monotonic()
    begin()
    mark("compose")
    program = (
        f"from launcher.marks import *; from pathlib import Path; mark('child'); write_startup(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    ended = time.monotonic()
    parts = json.loads((tmp_path / "startup.json").read_text())["parts"]
    assert [part for part, _ in parts] == ["interpreter and imports", "compose", "child"]
    assert all(seconds >= 0 for _, seconds in parts)
    assert 0 < parts[2][1] <= ended - began + 0.01
    mark("here")
    assert marks()[-1][0] == "here" and marks()[0][0] == "command"
    write_startup(tmp_path)
    total = sum(seconds for _, seconds in json.loads((tmp_path / "startup.json").read_text())["parts"])
    assert total == pytest.approx(marks()[-1][1] - marks()[0][1], abs=0.01)


def test_the_birth_of_a_process_is_before_now() -> None:
    assert born() < time.monotonic()
    program = "import time; from launcher.marks import born; print(born(), time.monotonic())"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    birth, _ = map(float, done.stdout.split())
    assert began - 0.02 <= birth <= time.monotonic()


def test_a_restart_is_counted_from_its_own_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "command=1.0;compose=2.0;")
    begin_again()
    mark("start of ranks")
    write_startup(tmp_path)
    ((part, seconds),) = json.loads((tmp_path / "startup.json").read_text())["parts"]
    assert part == "start of ranks" and seconds < 60
