"""Triaxis as a contender: the real spine, `launcher.train.train`, around a run that passes the turnstile.

Nothing of the step path is imitated: prefetched batches, engine, records, metrics file, progress and TensorBoard as in
a user's run. `join`, `begin_phase` and three constructors are timed on the way for the start-up figures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import launcher.train as spine
from launcher.bench.turns import BORN, Turnstile
from launcher.callbacks.base import StepRecord
from launcher.config import Recipe
from launcher.run import Run
from launcher.workers import StopRequest, die_with_parent
from parallel.engines.base import Engine
from parallel.mesh import Mesh

PARTS = {"Mesh": "mesh", "build_engine": "engine and initial weights"}


class Startup:
    """Seconds of every part from the start of the process to the end of the first step."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._born = float(os.environ[BORN])
        self.parts = {"interpreter and imports": turnstile.imports_done - self._born}

    def timed(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, whose time is added to a part."""

        def timed_work(*arguments: Any, **keywords: Any) -> Any:
            began = time.monotonic()
            try:
                return work(*arguments, **keywords)
            finally:
                self.parts[part] = self.parts.get(part, 0.0) + time.monotonic() - began

        return timed_work

    def first_step(self, record: StepRecord) -> dict[str, float]:
        """All parts, once the first step is recorded; what no part names is `other`."""
        self.parts["first batch"] = record.data_seconds
        self.parts["first step"] = record.step_seconds - record.data_seconds
        self.parts["other"] = time.monotonic() - self._born - sum(self.parts.values())
        return dict(self.parts)


class TimedRun(Run):
    """A run that passes the turnstile after all callbacks of a step, and saves when it is told to."""

    def __init__(self, recipe: Recipe, directory: Path, turnstile: Turnstile, startup: Startup) -> None:
        super().__init__(recipe, directory, StopRequest())
        self._turnstile, self._startup = turnstile, startup

    def join(self, mesh: Mesh, phase: Recipe) -> bool:
        return self._startup.timed("run directory and tokenizer", super().join)(mesh, phase)

    def begin_phase(self, phase: Recipe, engine: Engine) -> bool:
        return self._startup.timed("checkpoint, corpus, callbacks and plan", super().begin_phase)(phase, engine)

    def tell(self, hook: str, *arguments: Any) -> None:
        """Take the step's time once every callback has seen it; wait where the turn is over."""
        super().tell(hook, *arguments)
        if hook == "on_step":
            if not self._turnstile.startup:
                self._turnstile.startup = self._startup.first_step(arguments[0])
            self._turnstile.step_done(arguments[0].loss)
        elif hook == "on_event" and arguments[1] == "checkpoint":
            self._turnstile.committed()

    def agree(self, batch_tokens: int) -> tuple[bool, bool]:
        """Save where the turn asks for it; `launcher.loop.fit` does."""
        stop, save = super().agree(batch_tokens)
        return stop, save or self._turnstile.save_due

    def save(self, engine: Engine) -> None:
        """Time what the loop waits for."""
        began = time.perf_counter()
        super().save(engine)
        self._turnstile.saved(time.perf_counter() - began)


def main() -> None:
    """Run as a contender."""
    die_with_parent()
    turnstile = Turnstile()
    startup = Startup(turnstile)
    for name, part in PARTS.items():
        setattr(spine, name, startup.timed(part, getattr(spine, name)))
    recipe, device = startup.timed("frozen recipe", spine.obtain_recipe)([])
    if device.type == "cuda":
        turnstile.synchronize = spine.torch.cuda.synchronize
    with TimedRun(recipe, Path(recipe.run.dir) / recipe.run.name, turnstile, startup) as run:
        spine.train(recipe, run, device)


if __name__ == "__main__":
    main()
