"""Learning rate as a function of tokens: a pure function, so a resume needs no state and a batch may change size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from launcher.config import ScheduleConfig

Shape = Callable[[float, "Schedule"], float]


@dataclass(frozen=True)
class Schedule:
    """A schedule over `total` tokens with peak `rate`."""

    config: ScheduleConfig
    rate: float
    total: int

    def at(self, tokens: int) -> float:
        """Learning rate of the step after which `tokens` tokens of this span are consumed."""
        warmup = self.warmup
        if tokens < warmup:
            return self.rate * tokens / warmup
        return self.rate * SHAPES[self.config.name](min(float(tokens), float(self.total)), self)

    @property
    def warmup(self) -> float:
        """Tokens over which the rate rises."""
        return self.config.warmup_tokens or self.config.warmup_share * self.total

    @property
    def decay_start(self) -> float:
        """wsd: tokens after which the rate falls."""
        return self.total - (self.config.decay_tokens or self.total / 10)


def _progress(tokens: float, schedule: Schedule) -> float:
    span = schedule.total - schedule.warmup
    return (tokens - schedule.warmup) / span if span > 0 else 1.0


def _constant(tokens: float, schedule: Schedule) -> float:
    return 1.0


def _linear(tokens: float, schedule: Schedule) -> float:
    return 1 - (1 - schedule.config.final_ratio) * _progress(tokens, schedule)


def _cosine(tokens: float, schedule: Schedule) -> float:
    final = schedule.config.final_ratio
    return final + (1 - final) * (1 + math.cos(math.pi * _progress(tokens, schedule))) / 2


def _wsd(tokens: float, schedule: Schedule) -> float:
    start = schedule.decay_start
    if tokens <= start:
        return 1.0
    return 1 - (1 - schedule.config.final_ratio) * (tokens - start) / (schedule.total - start)


SHAPES: dict[str, Shape] = {"constant": _constant, "linear": _linear, "cosine": _cosine, "wsd": _wsd}
