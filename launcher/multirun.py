"""Hydra's own `--multirun` with several runs at a time: launchers of Hydra for processes here and for an array of SLURM.

    triaxis train -m hydra/launcher=processes hydra.launcher.workers=2 optimizer.learning_rate=1e-3,2e-3 seed=1,2
    triaxis train -m hydra/launcher=slurm "hydra.launcher.options=['--partition=short']" seed=1,2,3,4

Every job is a `triaxis train` of its own, so one that dies takes no other with it. Hydra's default launcher runs them one after
another in this process. The published plugins were not taken: hydra-joblib-launcher calls functions in pooled processes that
train nothing but themselves, hydra-submitit-launcher's release of 2022 needs sacct, which not every site has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from launcher.config import RecipeError
from launcher.exits import AGAIN
from launcher.spawn import start_module
from launcher.sweep.array import array_script, submit_array

PACKAGE = (
    "hydra_plugins.triaxis"  # Hydra takes plugins of this namespace alone, and knows registered ones by module and name
)
LOG = "multirun.log"  # what a job printed, in its run's directory
CODES: list[int] = []
"""Exit codes of the jobs of this command: Hydra passes on none."""


@dataclass(frozen=True)
class Job:
    """A run of a multirun. words: of its `triaxis` command; directory: its run's."""

    overrides: tuple[str, ...]
    words: tuple[str, ...]
    directory: Path


class _Launcher(Launcher):
    """What both have in common: jobs from Hydra's overrides. config_dir: recipes of the user's; named: run.name is swept."""

    config_dir: str | None = None
    named = False

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what jobs are composed from."""
        self.hydra_context, self.config = hydra_context, config

    def jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        """Each with a name of its own: the recipe's with the number of the job, unless names are swept."""
        found = []
        for number, given in enumerate(job_overrides, first):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(given))
            name = composed.run.name if self.named else f"{composed.run.name}_{number}"
            plain = [text for text in given if not text.lstrip("+").startswith(("run.name=", "hydra"))]
            more = ["--config-dir", self.config_dir] if self.config_dir else []
            words = ("train", *plain, f"run.name={name}", *more)
            found.append(Job(tuple(given), words, Path(composed.run.dir) / name))
        places = [job.directory for job in found]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise RecipeError(
                f"{twice}: several jobs of this multirun would write there; sweep run.name, or leave it out"
            )
        return found


class Processes(_Launcher):
    """Jobs as processes of this machine, so many at a time."""

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise RecipeError(f"hydra.launcher.workers={workers}: must be at least 1")
        self.workers = workers

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all; a stop is passed on to those in progress, and no other begins."""
        from launcher.workers import StopRequest

        jobs, stop = self.jobs(job_overrides, initial_job_idx), StopRequest()
        codes: dict[int, int] = {}
        running: dict[int, subprocess.Popen] = {}
        waiting = list(range(len(jobs)))
        told = False
        try:
            while running or (waiting and not stop.wanted):
                while waiting and len(running) < self.workers and not stop.wanted:
                    running[waiting[0]] = self._start(jobs[waiting[0]])
                    waiting.pop(0)
                if stop.wanted and not told:
                    told = True
                    for process in running.values():
                        process.terminate()
                for number, process in list(running.items()):
                    if process.poll() is not None:
                        codes[number] = process.returncode
                        del running[number]
                        print(f"{jobs[number].directory}: exit code {process.returncode}", flush=True)
                time.sleep(0.1)
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        CODES.extend(codes.get(number, AGAIN) for number in range(len(jobs)))
        return [_returned(job) for job in jobs]

    def _start(self, job: Job) -> subprocess.Popen:
        job.directory.mkdir(parents=True, exist_ok=True)
        every = sorted(os.sched_getaffinity(0))
        print(f"{job.directory}: begins, log in {job.directory / LOG}", flush=True)
        return start_module(
            "launcher.sweep.child",
            *job.words,
            log=job.directory / LOG,
            variables={"TRIAXIS_PARENT": str(os.getpid()), "TRIAXIS_CORES": ",".join(map(str, every))},
        )


class Slurm(_Launcher):
    """Jobs as the tasks of one array; this command returns when SLURM has them."""

    def __init__(self, options: Sequence[str] = (), at_once: int = 0) -> None:
        self.options, self.at_once = tuple(options), at_once

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit all."""
        jobs = self.jobs(job_overrides, initial_job_idx)
        place = jobs[0].directory.parent
        script = array_script(
            jobs[0].directory.name,
            [job.words for job in jobs],
            place.resolve(),
            most=self.at_once,
            options=self.options,
        )
        path = place / f"multirun_{time.strftime('%Y%m%d_%H%M%S')}.sbatch"
        number = submit_array(script, path)
        print(f"submitted  array {number} of {len(jobs)} runs  {path}", flush=True)
        return [_returned(job) for job in jobs]


def _returned(job: Job) -> JobReturn:
    return JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)


def register(config_dir: str | None, named: bool) -> None:
    """Tell Hydra of both, and them of the command line."""
    _Launcher.config_dir, _Launcher.named = config_dir, named
    CODES.clear()
    with contextlib.suppress(ImportError):
        import hydra_plugins  # of whatever else is installed  # noqa: F401
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    if not hasattr(package, "__path__"):
        package.__path__ = []  # where Hydra looks for further plugins
    sys.modules[PACKAGE] = package.triaxis = sys.modules[__name__]  # type: ignore[attr-defined]
    store = ConfigStore.instance()
    for kind, name, options in (
        (Processes, "processes", {"workers": 2}),
        (Slurm, "slurm", {"options": [], "at_once": 0}),
    ):
        kind.__module__ = PACKAGE
        Plugins.instance().register(kind)
        store.store(
            group="hydra/launcher",
            name=name,
            node={"_target_": f"{PACKAGE}.{kind.__name__}", **options},
            provider="triaxis",
        )
