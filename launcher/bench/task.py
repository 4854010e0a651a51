"""What every contender is given: one recipe, and for those that are not Triaxis the same batches and learning rates.

Imports neither torch nor Hydra, so that a bare loop pays for nothing that it does not use.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config import Recipe

PLACE = "TRIAXIS_BENCH_TASK"  # environment variable: the pickled Task


@dataclass(frozen=True)
class Task:
    """The recipe of a bench, resolved. precision: fp32 or bf16. rates: learning rate of every step."""

    recipe: Recipe
    device: str
    threads: int
    precision: str
    rates: tuple[float, ...]
    batches: Path  # int64 [steps, R, S + 1]: the samples of the first steps, as the stream gives them

    def save(self, path: Path) -> None:
        """Write it where a contender finds it."""
        path.write_bytes(pickle.dumps(self))

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.recipe.train.batch_sequences // self.recipe.train.micro_batch

    def samples(self) -> np.ndarray:
        """int64 [steps, R, S + 1]."""
        return np.load(self.batches)

    def synchronize(self) -> Callable[[], None] | None:
        """What waits for the device; None where nothing has to."""
        if self.device == "cpu":
            return None
        import torch

        return torch.cuda.synchronize


def load_task() -> Task:
    """The task that the environment names."""
    found: Any = pickle.loads(Path(os.environ[PLACE]).read_bytes())
    assert isinstance(found, Task)
    return found
