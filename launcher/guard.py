"""What watches over a run on one rank: its pace, the watchdog, the health of machines, and the end of its job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launcher.config import Recipe
from launcher.endtime import EndTime
from launcher.health import examine, write_health
from launcher.marks import mark, write_startup
from launcher.pace import Pace
from launcher.watchdog import Watchdog, call_roll
from parallel.mesh import Mesh

LEAST_LIMIT, LEAST_COMPILED = 40.0, 180.0  # seconds in which no step is said to hang; one may have to compile again

Tell = Callable[[str, str], None]


class Guard:
    """Stands from the first mesh of a process to its end. tell: called with (kind, message) of what is worth knowing."""

    def __init__(self, recipe: Recipe, directory: Path, tell: Tell) -> None:
        self.recipe, self.directory, self.tell = recipe, directory, tell
        self.pace = Pace()
        self.end_time = EndTime(directory, recipe.life.end_margin_seconds)
        self._watchdog: Watchdog | None = None
        self._steps = 0  # of this process

    def stand(self, mesh: Mesh, steps: Callable[[], int]) -> None:
        """From here on hangs are broken; and no step is made on machines that are not sound. steps: how many the run has."""
        life, self.rank = self.recipe.life, mesh.rank
        self.end_time.listens = mesh.rank == 0
        if life.watchdog:
            roll, timeout = call_roll(mesh.device), self.recipe.parallel.timeout_seconds
            self._watchdog = Watchdog(self.directory, self.pace, life, timeout, mesh.rank, roll, steps)
        if life.health:
            self.pace.now("health")
            health = examine(mesh, life.health_seconds)
            self.tell("health", health.table())
            if mesh.rank == 0:
                write_health(self.directory, health)
        mark("health")

    def end_is_near(self, save_seconds: float, *, looks: bool) -> bool:
        """Whether the state must be saved now: after one more step, and the look that comes before it, it may be too late."""
        near = self.end_time.near(self.pace.step_seconds + save_seconds + (self.pace.look_seconds if looks else 0.0))
        if near:
            self.tell("deadline", f"the job ends in {self.end_time.left():.0f} s")
        return near

    def limit(self) -> float:
        """Seconds after which a step hangs, as this rank would have it; 0 where it cannot say yet."""
        return self.pace.limit(LEAST_COMPILED if self.recipe.parallel.compile != "none" else LEAST_LIMIT)

    def agreed(self, limit: float) -> None:
        """A step has ended on every rank. limit: the longest of all ranks'."""
        self.pace.common_limit = limit
        self._steps += 1
        if self._steps == 1 and self.rank == 0:
            mark("first step")
            write_startup(self.directory)

    def close(self) -> None:
        """Watch no more."""
        if self._watchdog is not None:
            self._watchdog.close()
