"""Starting real `triaxis` commands, knowing every process that comes of them, and reading what a run left.

Every process inherits a mark in its environment. By that mark a test sees whether anything is left running, and ends
what is, however the test ended: ranks live in sessions of their own, so a process group would not do.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parallel.checkpoint.store import Store, step_name
from tests.launcher.warm import SERVER, Command, below

ROOT = Path(__file__).resolve().parents[2]
MARK = "TRIAXIS_TEST_MARK"
BATCH = 128  # tokens of a step of the minute run
RATE = 1e-3  # its peak; at 3e-3 one step in 44 amplified rounding a hundredfold
INTERRUPTED = 75
WORDS = ["the", "model", "token", "stream", "of", "and", "reads", "writes", "always", "it", "def", "return", "if\n"]
INHERITED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TRIAXIS_RECIPE")


def write_text(directory: Path, documents: int = 60, seed: int = 0) -> Path:
    """Made-up documents, the same everywhere."""
    draw = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    for number in range(documents):
        text = f"{number}: " + " ".join(draw.choices(WORDS, k=draw.randint(5, 400)))
        (directory / f"{number:03d}.txt").write_text(text, encoding="utf-8", newline="")
    return directory


def minute(corpus: Path, steps: int, *more: str, **options: object) -> list[str]:
    """Overrides of the minute run: `triaxis train` with a model of 29,000 parameters for so many steps of 128 tokens,
    without a report.

    options: dotted names with `__` for the dot. more: overrides as they are.
    """
    settings: dict[str, object] = {
        "run.name": "run",
        "run.dir": "runs",
        "data.path": corpus,
        "data.span_tokens": 32,
        "model.hidden_size": 32,
        "model.layers": 2,
        "model.heads": 2,
        "model.ffn_size": 64,
        "model.max_sequence": 32,
        "model.vocab_multiple": 2,
        "train.sequence_length": 16,
        "train.batch_tokens": BATCH,
        "train.micro_batch": 2,
        "train.tokens": steps * BATCH,
        "train.validation_tokens": 64,
        "train.sample_length": 0,
        "tracker.report": "false",
        "optimizer.learning_rate": RATE,
        "checkpoint.keep_last": 1000,
        "cluster.threads": 1,
    }
    settings.update({key.replace("__", "."): value for key, value in options.items()})
    return ["tracker=none", "precision=fp32", *more, *(f"{key}={value}" for key, value in settings.items())]


def minute_sweep(corpus: Path, steps: int, *more: str) -> list[str]:
    """Overrides of a sweep of the minute run, named s; its axes may choose the learning rate."""
    decided = ("run.dir=", "run.name=", "optimizer.learning_rate=")
    return [*(text for text in minute(corpus, steps) if not text.startswith(decided)), "sweep.name=s", *more]


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    output: str
    seconds: float


class Started:
    """A command that runs; its output goes to a file."""

    def __init__(self, process: subprocess.Popen | Command, log: Path, owner: Triaxis) -> None:
        self.process, self.log, self.owner = process, log, owner
        self.began = time.monotonic()

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout: float = 300.0, *, code: int | None = None) -> Done:
        """The end of the command, and of all that it started. code: the exit code that it must have."""
        try:
            found = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.owner.end()
            raise AssertionError(f"no end after {timeout:.0f} s:\n{self.output}") from None
        done = Done(found, self.output, time.monotonic() - self.began)
        assert code is None or found == code, f"exit code {found}, not {code}:\n{done.output}"
        return done

    def until(self, true: Callable[[], object], what: str, timeout: float = 120.0) -> None:
        """Wait for something to be true while the command runs; fails where it ends before."""
        end = time.monotonic() + timeout
        while not true():
            ended = self.process.poll() is not None
            if (ended and not true()) or time.monotonic() > end:
                self.owner.end()
                raise AssertionError(f"{'ended' if ended else f'{timeout:.0f} s passed'} before {what}:\n{self.output}")
            time.sleep(0.005)

    def until_step(self, run: Path, step: int, timeout: float = 120.0) -> None:
        """Wait until a step is in metrics.jsonl."""
        self.until(lambda: last_step(run) >= step, f"step {step}", timeout)

    def kill(self) -> None:
        """SIGKILL the launcher alone, and wait until nothing is left."""
        self.process.kill()
        self.process.wait()
        self.owner.assert_nothing_runs()


class Triaxis:
    """Commands in one directory."""

    def __init__(self, directory: Path, *, cold: bool = False) -> None:
        self.directory, self.cold = directory, cold
        self.mark = uuid.uuid4().hex
        self._count = 0
        self._started: list[subprocess.Popen | Command] = []
        self._keepers: list[int] = []

    def start(self, *arguments: str, program: Sequence[str] = (), **environment: str) -> Started:
        """Start `triaxis` (or another program) with arguments. A fork of a process that has imported everything where neither
        program nor environment are the caller's, unless this object is `cold`."""
        self._count += 1
        log = self.directory / f"output_{self._count}.txt"
        inherited = {key: value for key, value in os.environ.items() if key not in INHERITED}
        variables = {**inherited, MARK: self.mark, **environment}
        if not (program or environment or self.cold):
            warm = SERVER.start(arguments, self.directory, variables, log)
            self._keepers.append(warm.keeper)
            self._started.append(warm)
            return Started(warm, log, self)
        with open(log, "wb") as file:
            process = subprocess.Popen(
                [*(program or [command()]), *arguments],
                cwd=self.directory,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(process)
        return Started(process, log, self)

    def run(self, *arguments: str, code: int = 0, timeout: float = 300.0, **environment: str) -> Done:
        """A command from start to end; nothing may be left running."""
        done = self.start(*arguments, **environment).wait(timeout, code=code)
        self.assert_nothing_runs()
        return done

    def processes(self) -> dict[int, str]:
        """Living processes that bear the mark, or descend from a fork, zombies not counted: pid -> command line."""
        found, forks = {}, set(below(self._keepers))
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (
                    int(entry.name) in forks or f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                ):
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
        return found

    def assert_nothing_runs(self, within: float = 5.0) -> None:
        """Fail where a process is left after some seconds."""
        end = time.monotonic() + within
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)
        assert not left, f"still running after {within} s: {left}"

    def end(self) -> None:
        """Kill whatever is left."""
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.poll()
            time.sleep(0.02)
        for process in self._started:
            process.wait()


def command() -> str:
    """The console command of this environment."""
    return str(Path(sys.executable).with_name("triaxis"))


def rank_processes(triaxis: Triaxis) -> dict[int, int]:
    """Ranks that run, as they are named in the list of processes: rank -> pid."""
    found = {}
    for pid in triaxis.processes():
        with contextlib.suppress(OSError):
            name, _, rank = Path(f"/proc/{pid}/comm").read_text().strip().partition("_")
            if name == "rank":
                found[int(rank)] = pid
    return found


# What a run left


def records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl, of one kind or all; a torn last line is left out."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if kind in (None, line["kind"])]


def last_step(run: Path) -> int:
    """The newest step in metrics.jsonl."""
    return max((record["step"] for record in records(run, "step")), default=0)


CURVE = ("step", "phase", "tokens", "loss", "grad_norm", "learning_rate", "skipped", "batch_hash")


def curve(run: Path) -> list[tuple[Any, ...]]:
    """What a run computed, step by step, without the clock. Each step must be there exactly once, in order."""
    found = [tuple(record[key] for key in CURVE) for record in records(run, "step")]
    numbers = [step for step, *_ in found]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    return found


def validations(run: Path) -> dict[int, tuple[float, float]]:
    """Validation loss and bits per byte by step; a step that was validated again must have found the same."""
    found: dict[int, tuple[float, float]] = {}
    for record in records(run, "validation"):
        value = (record["validation_loss"], record["bits_per_byte"])
        assert found.setdefault(record["step"], value) == value
    return found


def assert_same_curve(run: Path, straight: Path) -> None:
    """Every step and every validation bitwise as in the straight run."""
    ours, theirs = curve(run), curve(straight)
    assert len(ours) == len(theirs), (len(ours), len(theirs))
    differing = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
    assert not differing, f"{len(differing)} of {len(ours)} steps differ, the first: {differing[0]}"
    assert validations(run) == validations(straight)


def assert_close_curve(run: Path, straight: Path, relative: float = 1e-5, norms: float = 1e-4) -> None:
    """The same batches, and losses and gradient norms within tolerances, at every step."""
    ours, theirs = curve(run), curve(straight)
    assert [line[0] for line in ours] == [line[0] for line in theirs]
    assert [line[-1] for line in ours] == [line[-1] for line in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a[3] - b[3]) <= relative * abs(b[3]), (a, b)
        assert abs(a[4] - b[4]) <= norms * abs(b[4]), (a, b)


def committed(run: Path) -> list[int]:
    """Steps of whole checkpoints, oldest first."""
    return [found.step for found in Store(run / "checkpoints").list() if found.whole]


def checkpoint(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / step_name(step)


def rewound(run: Path, to: Path, step: int) -> Path:
    """A copy of a run as a SIGKILL would have left it between the checkpoint of `step` and the next one."""
    shutil.copytree(run, to)
    for path in (to / "checkpoints").glob("step_*"):
        if int(path.name.split("_")[1]) > step:
            shutil.rmtree(path)
    assert committed(to)[-1] == step, committed(to)
    (to / "summary.json").unlink(missing_ok=True)
    lines = (to / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["kind"] != "end"]
    (to / "metrics.jsonl").write_text("".join(kept)[:-7])  # a kill may tear the last line
    return to


def flip_byte(path: Path, at: int = -100) -> None:
    """Alter one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def last_start(run: Path) -> int:
    """The step that the newest process of a run began from."""
    return records(run, "start")[-1]["start_step"]


class Together:
    """Independent jobs, two at a time: a process that starts keeps one core busy with imports for seconds.

    A job gets commands in a directory of its own; its result, or its error, is had by its name.
    """

    def __init__(self, directory: Callable[[str], Path]) -> None:
        self._directory = directory
        self._pool = ThreadPoolExecutor(2)
        self._places: list[Triaxis] = []
        self._futures: dict[str, Future] = {}

    def add(self, name: str, job: Callable[[Triaxis], Any]) -> None:
        """Begin a job as soon as there is room."""
        self._places.append(Triaxis(self._directory(name.replace(" ", "_"))))
        self._futures[name] = self._pool.submit(job, self._places[-1])

    def __getitem__(self, name: str) -> Any:
        return self._futures[name].result()

    def close(self) -> None:
        """End every job and every process."""
        for future in self._futures.values():
            future.cancel()
        while not all(future.done() for future in self._futures.values()):
            for place in self._places:
                place.end()
            time.sleep(0.1)
        for place in self._places:
            place.end()
        self._pool.shutdown()
