"""A profiled step of a pipeline, measured and as its schedule would have it, in units of the mean forward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.plan.layout import draw
from parallel.config import ParallelConfig
from parallel.timeline import FORWARD, Slot, idle_share, timeline


def pipeline_pictures(directory: Path) -> list[tuple[str, bytes]]:
    """(caption, PNG) of the step that a run profiled, measured first; empty where it profiled none.

    Of all ranks those of the first tensor and data rank are drawn: a row for each rank of the pipeline axis.
    """
    told = [json.loads(path.read_text()) for path in sorted((directory / "profile").glob("rank_*.json"))]
    told = [rank for rank in told if rank["place"]["tensor"] == rank["place"]["data"] == 0]
    if not told:
        return []
    layout, micro_batches, step = ParallelConfig(**told[0]["parallel"]), told[0]["micro_batches"], told[0]["step"]
    measured, forward = _measured(told)
    planned = timeline(layout, micro_batches, told[0]["costs"])
    seconds = max(slot.end for slot in measured) * forward
    idle, expected = (f"{100 * idle_share(slots):.1f} %" for slots in (measured, planned))
    return [
        (
            f"Step {step} as measured: {1000 * seconds:.0f} ms from the first action to the last, idle {idle}; a mean "
            f"forward takes {1000 * forward:.1f} ms.",
            draw(measured, layout, micro_batches),
        ),
        (
            f"The same step in theory: backward takes twice as long as forward, communication nothing, idle {expected}.",
            draw(planned, layout, micro_batches),
        ),
    ]


def _measured(told: list[dict[str, Any]]) -> tuple[list[Slot], float]:
    """Slots in units of the mean forward, from the first action on, and that forward in seconds.

    Processes of one machine share a clock; between machines each is set by the barrier before the step.
    """
    shared = len({rank["machine"] for rank in told}) == 1
    slots = [
        Slot(rank["place"]["pipeline"], stage, kind, micro, begin - zero, end - zero)
        for rank in told
        for zero in [0.0 if shared else rank["zero"]]
        for stage, kind, micro, begin, end in rank["spans"]
    ]
    forwards = [slot.end - slot.begin for slot in slots if slot.kind == FORWARD]
    unit, first = sum(forwards) / len(forwards), min(slot.begin for slot in slots)
    slots = [replace(slot, begin=(slot.begin - first) / unit, end=(slot.end - first) / unit) for slot in slots]
    return sorted(slots, key=lambda slot: (slot.rank, slot.begin)), unit
