"""Running what waits: `triaxis train` as child processes, so many at a time, until nothing is left or somebody asks to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from launcher.callbacks.metrics import FILE_NAME, parse_line
from launcher.exits import AGAIN
from launcher.schema import recorded_model
from launcher.spawn import start_module
from launcher.submit import ONE_OF_MANY
from launcher.sweep.child import CORES
from launcher.sweep.config import SweepConfig
from launcher.sweep.store import Row, Store, new_owner
from models.flops import flops_per_token

LOG = "sweep.log"  # what a run printed, in its directory
BEAT_SECONDS = 5.0
LOOK_SECONDS = 0.1
GRACE_SECONDS = 120.0  # for runs to save when the sweep is asked to stop


class Stop(Protocol):
    """Whether somebody asked to stop (`launcher.workers.StopRequest`)."""

    wanted: bool


class Show(Protocol):
    """Who is told of what happens."""

    def began(self, row: Row) -> None:
        """A run starts, or goes on."""

    def ended(self, row: Row, state: str, told: str) -> None:
        """A run is done, failed, or waits again. told: figures or error in words."""

    def looked(self, running: Sequence[tuple[Row, Path]]) -> None:
        """A moment passed; the runs in progress and their directories."""


@dataclass
class _Child:
    row: Row
    directory: Path
    process: subprocess.Popen
    beaten: float
    slot: int


class Runner:
    """Claims runs of a sweep and runs them here."""

    def __init__(self, store: Store, sweep: SweepConfig, config_dir: str | None, show: Show) -> None:
        self.store, self.sweep, self.config_dir, self.show = store, sweep, config_dir, show
        self.owner = new_owner()
        self._children: list[_Child] = []

    def run(self, among: set[str], stop: Stop, propose: Callable[[], str | None] = lambda: None) -> None:
        """Run all of these configurations that wait, and where none does what is proposed, which joins them; asked to stop, let
        those in progress save and return."""
        asked = 0.0
        try:
            while True:
                if stop.wanted and not asked:
                    asked = time.monotonic()
                    self._signal(signal.SIGTERM)
                while not asked and len(self._children) < self.sweep.workers:
                    row = self.store.claim(among, self.owner)
                    if row is not None:
                        self._start(row)
                    elif (new := propose()) is None:
                        break
                    else:
                        among.add(new)
                if not self._children:
                    return
                if asked and time.monotonic() - asked > GRACE_SECONDS:
                    self._signal(signal.SIGKILL)
                self._look(stopping=bool(asked))
                self.show.looked([(child.row, child.directory) for child in self._children])
                time.sleep(LOOK_SECONDS)
        finally:  # an error of ours: none may go on unseen
            self._signal(signal.SIGKILL)
            for child in self._children:
                child.process.wait()
                self.store.leave(child.row.fingerprint, self.owner, "waiting")

    def _start(self, row: Row) -> None:
        slot = min(set(range(self.sweep.workers)) - {child.slot for child in self._children})
        directory = self.store.directory / row.directory
        directory.mkdir(parents=True, exist_ok=True)
        more = ["--config-dir", self.config_dir] if self.config_dir else []
        place = [f"run.dir={directory.parent}", f"run.name={directory.name}"]
        process = start_module(
            "launcher.sweep.child",
            "train",
            *(*row.overrides, *place, *more),
            log=directory / LOG,
            variables={
                ONE_OF_MANY: str(self.store.directory),
                "TRIAXIS_PARENT": str(os.getpid()),
                CORES: ",".join(map(str, self._share(slot))),
            },
        )
        self._children.append(_Child(row, directory, process, time.monotonic(), slot))
        self.show.began(row)

    def _share(self, slot: int) -> list[int]:
        """The cores of a slot: as many for each, so that runs beside one another do not take turns on one core."""
        every, workers = sorted(os.sched_getaffinity(0)), self.sweep.workers
        first, last = slot * len(every) // workers, (slot + 1) * len(every) // workers
        return every[first : max(last, first + 1)]

    def _look(self, *, stopping: bool) -> None:
        for child in list(self._children):
            if child.process.poll() is not None:
                self._children.remove(child)
                self._ended(child, stopping)
            elif time.monotonic() - child.beaten > BEAT_SECONDS:
                child.beaten = time.monotonic()
                if not self.store.beat(child.row.fingerprint, self.owner):  # we slept so long that another took it
                    child.process.kill()

    def _ended(self, child: _Child, stopping: bool) -> None:
        code, error = child.process.returncode, ""
        figures: dict[str, Any] = {}
        if code == 0:
            state, figures, error = _finished(child.directory)
            told = error or f"{self.sweep.metric} {figures[self.sweep.metric]:,.6g}, {figures['seconds']:,.0f} s"
        elif stopping:  # whatever the code: one that fails by itself fails again
            state, told = "waiting", "stopped; goes on from its newest checkpoint"
        else:
            state, error = "failed", last_error(child.directory / LOG, code)
            told = error
        self.store.leave(child.row.fingerprint, self.owner, state, error=error, figures=figures)
        if state == "done" and not self.sweep.keep_checkpoints:
            shutil.rmtree(child.directory / "checkpoints", ignore_errors=True)
        self.show.ended(child.row, state, told)

    def _signal(self, number: int) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(number)


def _finished(directory: Path) -> tuple[str, dict[str, Any], str]:
    try:
        return "done", figures_of(directory), ""
    except (OSError, ValueError, KeyError) as error:
        return "failed", {}, f"ended without its figures ({type(error).__name__}: {error})"


def figures_of(directory: Path) -> dict[str, Any]:
    """What a finished run came to. seconds, flops: of its own training steps alone, not of a run that it began from."""
    summary = json.loads((directory / "summary.json").read_text())
    seconds, trained = 0.0, 0
    with (directory / FILE_NAME).open() as lines:
        for line in lines:
            record = parse_line(line) or {}
            if record.get("kind") == "step":
                seconds += record.get("step_seconds") or 0.0
                trained += record["batch_tokens"]
    names = ("validation_loss", "bits_per_byte", "tokens", "parameters", "skipped_steps")
    flops = trained * flops_per_token_of(directory)
    return {**{name: summary[name] for name in names}, "seconds": seconds, "flops": flops}


def flops_per_token_of(directory: Path) -> float:
    """What a token costs in a run, forward and backward."""
    # A sweep outlives an update of Triaxis: its next runs are of the younger one.
    model, recipe = recorded_model(directory)
    return flops_per_token(model, recipe["train"]["sequence_length"])


def last_error(log: Path, code: int) -> str:
    """The error that a run ended with, one line: the last that the command told its user, else the last that was printed."""
    if code == AGAIN:
        return "was stopped from outside; --retry goes on from its newest checkpoint"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}; --retry goes on from its newest checkpoint"
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    told = [line.removeprefix("triaxis: ") for line in lines if line.startswith("triaxis: ")]
    return (told or lines or [f"ended with exit code {code}"])[-1][:500]
