"""A session of tests that is told to end leaves nothing running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.pool import ROOT

LONG = """
import subprocess, time
from pathlib import Path
import pytest

@pytest.fixture(scope="session")
def started():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()
    Path(__file__).with_name("ended").touch()

def test_long(started):
    Path(__file__).with_name("begun").touch()
    time.sleep(600)
"""


def test_sigterm_ends_what_fixtures_have_started(tmp_path: Path) -> None:
    (tmp_path / "test_long.py").write_text(LONG)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        tmp_path / "test_long.py",
    ]
    alone = {
        key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")
    }  # no worker of this session
    quiet = subprocess.DEVNULL
    session = subprocess.Popen(command, cwd=ROOT, env=alone, stdout=quiet, stderr=quiet)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "begun").exists():
            assert session.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        session.terminate()
        session.wait(60)
    finally:
        session.kill()
    assert (tmp_path / "ended").exists()
