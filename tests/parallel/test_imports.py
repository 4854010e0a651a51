"""A rank imports what it uses: seconds of every start, on every process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys, torch
compile_ = torch.compile
import launcher.train
assert torch.compile is compile_, "torch.compile is given back"
for name in ("wandb", "torch._inductor", "torch.distributed.pipelining", "deepspeed", "transformers"):
    assert name not in sys.modules, f"{name} is imported by every rank"
import wandb
assert hasattr(wandb, "init"), "wandb is there for who asks"
"""


def test_a_rank_does_not_import_what_it_does_not_need() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
