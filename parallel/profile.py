"""What a pipeline really did in one step: when each action of this rank began and ended, by the engine's own calls.

Relied on (tests/parallel/test_profile.py holds it): DeepSpeed's pipeline finds its instructions in `_INSTRUCTION_MAP`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from parallel.engines.base import Engine
from parallel.engines.pipeline import Pipeline, unwatched
from parallel.timeline import BACKWARD, FORWARD


@dataclass(frozen=True)
class Span:
    """One action of this rank. begin, end: seconds of time.monotonic, which all processes of a machine share."""

    stage: int
    kind: str
    micro_batch: int
    begin: float
    end: float


@contextmanager
def watched(engine: Engine) -> Iterator[list[Span]]:
    """Note the actions of a pipeline while the block runs. On GPU each is waited for, which costs what it overlaps."""
    from parallel.engines.fsdp import FsdpEngine

    spans: list[Span] = []
    if isinstance(engine, FsdpEngine):
        assert engine.pipeline is not None, "one stage has no schedule to watch"
        release = watch_stages(engine.pipeline, spans)
    else:
        release = _watch_deepspeed(engine, spans)
    try:
        yield spans
    finally:
        release()


def watch_stages(pipeline: Pipeline, spans: list[Span]) -> Callable[[], None]:
    """Note the actions of torch's stages from now on; returns what ends that."""

    def watch(stage: int, kind: str, micro_batch: int, action: Callable[[], Any]) -> Any:
        return _timed(spans, stage, kind, micro_batch, action)

    pipeline.watch = watch

    def release() -> None:
        pipeline.watch = unwatched

    return release


def _watch_deepspeed(engine: Any, spans: list[Span]) -> Callable[[], None]:
    from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass

    pipeline, stage, counts = engine.engine, engine.mesh.place.pipeline, {FORWARD: 0, BACKWARD: 0}

    def watch(kind: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def timed(owner: Any, **keywords: Any) -> Any:
            counts[kind] += 1  # 1F1B takes the micro-batches in order
            return _timed(spans, stage, kind, counts[kind] - 1, partial(plain, owner, **keywords))

        return timed

    known = pipeline._INSTRUCTION_MAP
    pipeline._INSTRUCTION_MAP = {
        **known,
        ForwardPass: watch(FORWARD, known[ForwardPass]),
        BackwardPass: watch(BACKWARD, known[BackwardPass]),
    }
    return lambda: delattr(pipeline, "_INSTRUCTION_MAP")


def _timed(spans: list[Span], stage: int, kind: str, micro_batch: int, call: Callable[[], Any]) -> Any:
    begin = _now()
    found = call()
    spans.append(Span(stage, kind, micro_batch, begin, _now()))
    return found


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()
