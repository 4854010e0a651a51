"""When the job ends, and whether it is time to save: for schedulers that send no signal, or send it too late.

SLURM_JOB_END_TIME is set in a job's environment, TRIAXIS_END_TIME (seconds since the epoch too) is for other schedulers.
Whoever controls the run may say more later, in `<run>/end_time`: a shorter limit, a preemption, a request to stop.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

FILE_NAME = "end_time"
LOOK_EVERY = 1.0  # seconds between looks at the file


def tell_end(directory: Path, when: float) -> None:
    """Say from outside when a run's job ends, in seconds since the epoch; a moment that has come stops it at its next step."""
    partial = directory / f"{FILE_NAME}.{os.getpid()}.partial"
    partial.write_text(f"{when:.3f}\n")
    partial.replace(directory / FILE_NAME)


def forget_end(directory: Path) -> None:
    """Take away what was told to an earlier attempt; whoever starts ranks does so before."""
    (directory / FILE_NAME).unlink(missing_ok=True)


class EndTime:
    """The end of the job as one rank knows it. margin: seconds that must be left when the state is saved; of a short job a
    quarter of its time, since it would stop at its first step otherwise."""

    def __init__(
        self,
        directory: Path,
        margin: float,
        variables: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file, self._clock, self._born = directory / FILE_NAME, clock, clock()
        self._planned = min(_number(variables.get(name, "")) for name in ("SLURM_JOB_END_TIME", "TRIAXIS_END_TIME"))
        self.listens = (
            True  # whether it looks at the file: one rank does for all, since thousands would burden its server
        )
        self._told = math.inf
        self._looked = -math.inf
        self._margin = min(margin, max(0.0, self._planned - self._born) / 4)

    def left(self) -> float:
        """Seconds until the job ends; infinite where nobody has said."""
        now = self._clock()
        if self.listens and now - self._looked >= LOOK_EVERY:
            self._looked, self._told = now, self._read()
        return min(self._planned, self._told) - now

    def near(self, ahead: float) -> bool:
        """Whether what must be done yet, and takes so many seconds, can no longer wait."""
        left = self.left()
        return left < math.inf and left < ahead + self._margin

    def _read(self) -> float:
        try:
            when = _number(self._file.read_text())
        except OSError:
            return math.inf
        return when if when >= self._born else math.inf  # it was told to an attempt before this one


def _number(text: str) -> float:
    try:
        return float(text) or math.inf
    except ValueError:
        return math.inf
