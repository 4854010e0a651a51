"""A SLURM of eight nodes on this machine, and what tests of other rooms share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.conftest import corpus, text, together  # noqa: F401 - fixtures
from tests.launcher.running import ROOT

SCRIPTS = ROOT / "slurm" / "testcluster"


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a cluster that runs; every program finds it by SLURM_CONF."""
    directory = tmp_path_factory.mktemp("cluster")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    try:
        subprocess.run([SCRIPTS / "up", directory, "8"], check=True, timeout=300)
        yield directory
    finally:
        subprocess.run([SCRIPTS / "down", directory], check=True, timeout=60)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before
