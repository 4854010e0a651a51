"""Contenders take turns: each is a process of its own that trains a few steps when it is told to, and else sleeps.

Short turns in changing order meet the same noise of the machine, so ratios of neighbours stay true where absolute
times do not. A process each keeps allocators, thread pools and imports apart, and gives each its own peak memory.

The parent writes `{"steps": …, "save_every": …}` to a contender's standard input and reads one line with a `Turn`. The
first turn, of one step, begins unasked: its answer says that the contender is ready.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BORN = "TRIAXIS_BENCH_BORN"  # environment variable: time.monotonic() of the parent when the contender was started
ROOT = Path(__file__).resolve().parent.parent.parent


class BenchError(RuntimeError):
    """A contender that could not take its turn; the message holds the end of what it printed."""


@dataclass
class Turn:
    """What a contender did in a turn. Times are seconds, sizes bytes.

    seconds: of each step, from the end of the one before. stalls: step index in the turn -> how long the save after that
    step held training up. committed: step indexes at whose end the save in flight was told to be over.
    """

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    stalls: dict[int, float] = field(default_factory=dict)
    committed: list[int] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    startup: dict[str, float] = field(default_factory=dict)
    processor: float = 0.0  # seconds of all cores that the turn took


class Contender:
    """A contender as the parent sees it: a process that runs `python -m module`."""

    def __init__(self, module: str, environment: dict[str, str], log: Path, python: str = sys.executable) -> None:
        self.module, self.log = module, log
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        known = {"PYTHONPATH": path, "TRIAXIS_PARENT": str(os.getpid()), BORN: repr(time.monotonic())}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [python, "-m", module],
                env={**os.environ, **environment, **known},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the bench alone, whose end closes every standard input
            )

    def ready(self) -> Turn:
        """Wait for the first step."""
        return self._answer()

    def turn(self, steps: int, save_every: int = 0) -> Turn:
        """Train `steps` steps; save_every: a checkpoint after every so many of them, 0 for none."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"steps": steps, "save_every": save_every}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None
        return self._answer()

    def close(self) -> None:
        """End the process: it leaves when its standard input ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> Turn:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        turn = Turn(**json.loads(line))
        turn.stalls = {int(index): stall for index, stall in turn.stalls.items()}
        return turn

    def _error(self) -> BenchError:
        code = self._process.wait()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        return BenchError(f"{self.module}: ended with exit code {code}\n{tail}")


class Turnstile:
    """A contender's own side: `step_done` after every step, which sleeps between turns. Make it after all imports.

    synchronize: waits for the device, on a GPU; there only the mean of a turn is sure, and each step is told as that. With
    saves every step is told as it seemed: an engine waits for its loss, so a step is about right.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None) -> None:
        self.imports_done = time.monotonic()
        self.synchronize = synchronize
        self.startup: dict[str, float] = {}
        self.save_every = 0
        self._imported = memory()["resident"]
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever else is printed goes to the log
        self._steps, self._turn, self._losses = 1, Turn(), list[Any]()
        self._last, self._processor = time.perf_counter(), time.process_time()

    @property
    def save_due(self) -> bool:
        """Whether a save follows the step just made."""
        made = len(self._turn.seconds)  # 0 right after a turn ended: its last step is followed by none
        return self.save_every > 0 and made > 0 and made % self.save_every == 0

    def saved(self, stall: float) -> None:
        """A save held training up for so long after the step just made."""
        self._turn.stalls[len(self._turn.seconds) - 1] = stall

    def committed(self) -> None:
        """The save in flight was told to be over."""
        self._turn.committed.append(len(self._turn.seconds) - 1)

    def step_done(self, loss: Any) -> None:
        """A step ended; loss: a number or a tensor. Raises SystemExit once the parent wants no more."""
        last = len(self._turn.seconds) + 1 == self._steps
        if last and self.synchronize:
            self.synchronize()
        now = time.perf_counter()
        self._turn.seconds.append(now - self._last)
        self._losses.append(loss)
        self._last = now
        if last:
            self._finish_turn()
            self._last, self._processor = time.perf_counter(), time.process_time()

    def _finish_turn(self) -> None:
        turn = self._turn
        if self.synchronize and not self.save_every:
            turn.seconds = [sum(turn.seconds) / self._steps] * self._steps
        turn.processor = time.process_time() - self._processor
        turn.losses = [float(loss) for loss in self._losses]
        turn.memory, turn.startup = {"imported": self._imported, **memory()}, self.startup
        self._turn, self._losses = Turn(), []
        try:
            self._answers.write(json.dumps(asdict(turn)) + "\n")
            self._answers.flush()
            command = json.loads(sys.stdin.readline())
        except (ValueError, OSError):
            raise SystemExit(0) from None
        self._steps, self.save_every = command["steps"], command["save_every"]


def memory() -> dict[str, int]:
    """Bytes of this process: resident now, how many of those no mapped file holds, and resident at most so far; on a GPU also
    the most that torch held there.

    Read from /proc: `getrusage` counts what the parent had when it forked.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    kinds = {"resident": "VmRSS", "own": "RssAnon", "peak": "VmHWM"}
    found = {kind: int(sizes[name][0]) * 1024 for kind, name in kinds.items()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["gpu_peak"] = torch.cuda.max_memory_allocated()
    return found
