"""The checkpoints of a run: which one it begins with, filling engines from it, and writing new ones."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.batches import Counters
from launcher.check import check_same_multipliers, check_same_run, flatten
from launcher.config import Recipe, RecipeError
from launcher.schema import to_plain
from parallel.check import choose_engine
from parallel.checkpoint.errors import CheckpointCorrupt, CheckpointError, NotSaved
from parallel.checkpoint.reader import load, read_state
from parallel.checkpoint.store import Retention, Store, resolve
from parallel.checkpoint.writer import SaveEvent, Saver
from parallel.engines.base import Engine
from parallel.mesh import Mesh

Tell = Callable[[str, str], None]


class Checkpoints:
    """One attempt's view of a run's checkpoints. Every method is called on every rank, at the same point.

    counters: where the found checkpoint stands. tell: called with (kind, message) of what is worth knowing.
    """

    def __init__(self, recipe: Recipe, directory: Path, mesh: Mesh, tell: Tell) -> None:
        self.recipe, self.mesh, self.tell = recipe, mesh, tell
        place = directory / "checkpoints"
        attempt = self._from_rank_zero(lambda: Store(place).open_attempt())
        self.store = Store(place, mesh.rank, mesh.world_size, attempt)
        config = recipe.checkpoint
        self.kept: list[int] = []  # steps that are kept for ever, of this run's earlier attempts too
        self.saver = Saver(
            self.store,
            retention=Retention(config.keep_last, config.keep_every_steps or None),
            asynchronous=config.asynchronous,
        )
        self.counters = Counters()
        self.found: Path | None = None
        self.weights_only = False
        self.fell_back = False  # whether the last `fill` set a corrupt checkpoint aside
        self._newest: Counters | None = None  # where the newest save stands
        self._newest_failed = False
        self._begun = False  # whether an engine was filled or left as it was built
        self.last_save = time.monotonic()
        self.save_seconds = 0.0  # from call to commit, the longest of this process so far
        self._find()

    # Reading

    def fill(self, engine: Engine) -> dict[str, Any]:
        """Load the found checkpoint into an engine and return its state; {} for fresh weights or weights alone.

        A corrupt one is set aside and the one before it used, where checkpoint.fall_back allows.
        """
        self.fell_back = False
        while self.found is not None:
            trouble: CheckpointCorrupt | None = None
            state: dict[str, Any] = {}
            try:
                pieces = engine.pieces(for_saving=False, weights_only=self.weights_only)
                state = load(self.found, pieces, verify=self.recipe.checkpoint.verify, rank=self.mesh.rank)
            except CheckpointCorrupt as error:
                trouble = error
            if not self.mesh.any_rank(trouble is not None):
                engine.loaded({} if self.weights_only else state["engine"])
                if not self._begun:  # at a border between phases it is the run's own state, of this moment
                    self.tell("init" if self.weights_only else "resume", f"from {self.found}")
                self._begun = True
                return {} if self.weights_only else state
            self._set_aside(trouble)
        self._begun = True
        return {}

    def _find(self) -> None:
        """The newest whole checkpoint of this run, else `run.init_from`, else nothing; rank 0 looks, all agree."""
        self.found, self.weights_only, self.counters = None, False, Counters()
        found = self._from_rank_zero(self._look)
        if found is not None:
            self.found, self.weights_only, counters, kept = found
            self.counters = Counters(**counters)
            self.keep(*kept)

    def _look(self) -> tuple[Path, bool, dict[str, int], list[int]] | None:
        newest = self.store.latest(fall_back=self.recipe.checkpoint.fall_back)
        if newest is not None:
            state = read_state(newest.path)
            check_same_run(self.recipe, state["recipe"], str(newest.path))
            return newest.path, False, _counters(newest.path, state), state.get("kept", [])
        begin = self.recipe.run
        if not begin.init_from:
            return None
        path, weights_only = resolve(Path(begin.init_from)), begin.init_what == "weights"
        check_same_multipliers(self.recipe, read_state(path)["recipe"], begin.init_from)
        return path, weights_only, {} if weights_only else _counters(path, read_state(path)), []

    def _set_aside(self, trouble: CheckpointCorrupt | None) -> None:
        assert self.found is not None
        text = str(trouble) if trouble else f"{self.found}: another rank found it corrupt"
        if not self.recipe.checkpoint.fall_back or self.found.parent != self.store.directory:
            raise CheckpointError(f"{text}; set checkpoint.fall_back=true to use the one before it")
        if self.mesh.rank == 0:
            self.store.quarantine(int(self.found.name.split("_")[1]))
        self.tell("warning", f"{text}; using the checkpoint before it")
        self.mesh.barrier()
        self.fell_back = True
        self._find()

    def _from_rank_zero(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on rank 0, on every rank; its error is raised on every rank too."""
        told: list[Any] = [None]
        if self.mesh.rank == 0:
            try:
                told = [work()]
            except (CheckpointError, RecipeError) as error:
                told = [error]
        if self.mesh.world_size > 1:
            dist.broadcast_object_list(told, src=0, device=self.mesh.device)
        if isinstance(told[0], Exception):
            raise told[0]
        return told[0]

    # Writing

    def save(self, engine: Engine, counters: Counters, data: dict[str, Any]) -> None:
        """Write a checkpoint of now, in the background unless the recipe says otherwise."""
        if self.found == self.store.path(counters.step) or self._is_saved(counters):
            return  # nothing happened since it was loaded, or saved
        recipe = to_plain(self.recipe)
        state = {
            "counters": asdict(counters),
            "engine": engine.state(),
            "data": data,
            "kept": self.kept,
            "tokens": counters.tokens,
            "recipe": recipe,
            "recipe_hash": recipe_hash(recipe),
            "layout": to_plain(choose_engine(self.mesh.config, self.mesh.world_size)[0]),
        }
        self.saver.save(counters.step, engine.pieces(for_saving=True), state)
        self._newest, self._newest_failed = counters, False
        self.last_save = time.monotonic()

    def keep(self, *steps: int) -> None:
        """Never remove the checkpoints of these steps."""
        self.kept = sorted({*self.kept, *steps})
        self.saver.retention = replace(self.saver.retention, keep=frozenset(self.kept))

    def _is_saved(self, counters: Counters) -> bool:
        """Whether the newest save was of now and no rank's part of it failed; waits for it."""
        if counters != self._newest:
            return False
        self.saver.wait()
        self.tell_saves()
        return not self.mesh.any_rank(self._newest_failed)

    def settle(self, counters: Counters) -> None:
        """Wait for the save of now; what was saved is what the next engine is filled from.

        Raises NotSaved where it failed: nobody may stop, or go on to another phase, in the belief that it is safe.
        """
        self.saver.wait()
        saves = [saved for saved in self.tell_saves() if saved.step == counters.step]
        failed = bool(saves) and not any(saved.committed for saved in saves)
        if self.mesh.any_rank(failed):
            why = saves[-1].message if failed else "another rank could not write its part"
            raise NotSaved(f"step {counters.step} is not saved: {why}; then give the same command again")
        self.found, self.weights_only = self.store.path(counters.step), False

    def tell_saves(self) -> list[SaveEvent]:
        """Tell how saves ended since the last call, and return it."""
        saves = self.saver.poll()
        for saved in saves:
            self.tell("checkpoint" if saved.committed else "warning", describe_save(saved))
            self._newest_failed |= not saved.committed
            self.save_seconds = max(self.save_seconds, saved.seconds)
        return saves

    def close(self, seconds: float | None) -> None:
        """Let the save in flight end, for at most so long."""
        self.saver.close(seconds)
        self.tell_saves()

    @property
    def minutes_since_save(self) -> float:
        """Minutes since the last save began."""
        return (time.monotonic() - self.last_save) / 60


def _counters(path: Path, state: dict[str, Any]) -> dict[str, int]:
    """Where a checkpoint stands; an import or a conversion may hold weights alone, which no run can go on from."""
    if "counters" not in state:
        raise CheckpointError(
            f"{path}: holds weights alone, so nothing can go on from it; begin another run with run.init_from={path} and "
            "run.init_what=weights"
        )
    return state["counters"]


def recipe_hash(recipe: dict[str, Any]) -> str:
    """Short hash of a resolved recipe."""
    return hashlib.sha256(json.dumps(flatten(recipe), sort_keys=True, default=str).encode()).hexdigest()[:16]


def describe_save(saved: SaveEvent) -> str:
    """How a save ended, in a line."""
    if not saved.committed:
        return f"checkpoint of step {saved.step} failed: {saved.message}"
    size = f"{saved.size / 1e6:.1f} MB a rank"
    text = f"step {saved.step} saved in {saved.seconds:.2f} s, held training up {1000 * saved.stall:.0f} ms, {size}"
    return f"{text}; {saved.message}" if saved.message else text
