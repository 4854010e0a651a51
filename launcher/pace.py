"""What a rank is doing, since when, and how long that took before: what the watchdog and the end of a job are judged by."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

STEP = "step"
RECENT = 50  # steps that count as the last ones
ENOUGH = 3  # steps of a phase after which its pace is known


class Pace:
    """One activity after another, each named when it begins; the loop's thread writes, the watchdog's reads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.doing = "starting"
        self.quick = False  # whether it is of a kind whose length is known
        self.beats = 0  # grows with every activity: one that does not change is one that goes on
        self.common_limit = 0.0  # seconds a step may take, the longest of all ranks' own limits
        self._began = self._step_ended = clock()
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._looks: deque[float] = deque(maxlen=RECENT)
        self._looked = False

    def now(self, doing: str, *, quick: bool = False) -> None:
        """Another activity begins. quick: one that takes no longer than a step."""
        now = self._clock()
        if self.doing == STEP:
            self._step_ended = now
            if self.quick:
                self._steps.append(now - self._began)
        if doing == STEP:
            if self._looked:
                self._looks.append(now - self._step_ended)
            self._looked = False
        self._looked |= doing in ("validation", "sampling")
        self.doing, self.quick, self._began = doing, quick, now
        self.beats += 1

    def new_phase(self) -> None:
        """What comes is of another length: forget the steps so far."""
        self._steps.clear()
        self.common_limit = 0.0
        self.now("building")

    @property
    def step_seconds(self) -> float:
        """The slowest of the last steps, the one under way among them; a first step, which compiles, only while it is the
        only one."""
        under_way = self._clock() - self._began if self.doing == STEP and (self.quick or not self._steps) else 0.0
        return max(*self._steps, under_way, 0.0)

    @property
    def look_seconds(self) -> float:
        """The longest recent stretch between two steps in which the model was validated or sampled from."""
        return max(self._looks, default=0.0)

    def limit(self, least: float) -> float:
        """Seconds after which a step hangs, by what this rank has measured; 0 while it has seen too few."""
        return max(least, 10 * max(self._steps)) if len(self._steps) >= ENOUGH else 0.0
