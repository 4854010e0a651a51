"""`life:` of a recipe: what a run does about failures, hangs, bad machines and the end of its job."""

from __future__ import annotations

from dataclasses import dataclass


class LifeError(ValueError):
    """A way of life that cannot be: the message names the option, the value, the limit and the cure."""


@dataclass(frozen=True)
class LifeConfig:
    """Failures, hangs, health and the end of the job."""

    restarts: int = 0
    """How often the run is started again from its newest checkpoint after a failure that another attempt may cure."""
    fruitless: int = 3
    """Give up earlier: after this many attempts in a row that failed without a newer checkpoint."""
    end_margin_seconds: float = 60.0
    """Where the end of the job is known (SLURM_JOB_END_TIME, TRIAXIS_END_TIME): stop so early that this much time is left
    after the state is saved; what a step, a look at the model and a save take is measured and comes on top."""
    watchdog: bool = True
    """End a run that hangs: every rank's stack and last collective go to its logs, and the missing rank is named."""
    hang_seconds: float = 0.0
    """A step that takes longer hangs; 0: ten times the slowest of the last steps and at least 40 (with parallel.compile 180).
    Everything else, the first step among it, may take thrice parallel.timeout_seconds."""
    health: bool = True
    """Before the first step, try every rank's device and every axis of the mesh, and name what is slow or wrong."""
    health_seconds: float = 5.0
    """What each rank's trial of its device may take at most."""

    def __post_init__(self) -> None:
        """Refuse what has no effect."""
        for option, limit in (("restarts", 0), ("fruitless", 1), ("end_margin_seconds", 0), ("hang_seconds", 0)):
            if getattr(self, option) < limit:
                raise LifeError(f"life.{option}={getattr(self, option)}: must be at least {limit}")
        if self.health_seconds <= 0:
            raise LifeError(
                f"life.health_seconds={self.health_seconds}: must be above 0; life.health=false tries nothing"
            )
        for option, needs, there in (
            ("fruitless", "life.restarts", self.restarts > 0),
            ("hang_seconds", "life.watchdog=true", self.watchdog),
            ("health_seconds", "life.health=true", self.health),
        ):
            if not there and getattr(self, option) != getattr(LifeConfig, option):
                raise LifeError(f"life.{option}={getattr(self, option)}: has no effect without {needs}; leave it out")
