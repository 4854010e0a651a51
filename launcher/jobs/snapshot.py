"""The code that a job runs, as it stood when it was submitted: what changes in the work tree later does not reach it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from launcher.machine import git_revision

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("launcher", "parallel", "models", "data", "recipes", "slurm")


def take_snapshot(folder: Path) -> str:
    """Copy the code to `folder`/code and write `folder`/changes.diff where it differs from its commit; returns the
    commit (`+changes` behind it), or an empty text outside a repository."""
    code = folder / "code"
    partial = folder / "code.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for room in ROOMS:
        shutil.copytree(ROOT / room, partial / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    partial.replace(code)
    revision = git_revision()
    if revision.endswith("+changes"):
        told = subprocess.run(
            ["git", "-C", str(ROOT), "diff", "HEAD", "--no-color"], capture_output=True, text=True, check=False
        )
        (folder / "changes.diff").write_text(told.stdout)
    return revision
