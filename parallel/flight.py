"""What each process group of this rank was last used for, read from torch's flight recorder: to name who is missing in a hang.

The recorder is on where TORCH_FR_BUFFER_SIZE was set before torch was imported (`record_flights`). Under gloo it knows
collectives, not sends and receives; under NCCL both (torch 2.13, read from its traces).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

ENTRIES = 512  # operations that are remembered; a hang shows in the last few


@dataclass(frozen=True)
class GroupState:
    """One process group as one rank sees it. Counts are of its collectives since it was made."""

    name: str
    ranks: tuple[int, ...]
    entered: int  # collectives that this rank has begun
    operation: str  # the oldest that has not ended, else the newest
    number: int  # its place among the group's collectives, 0 for a send or a receive
    waits: bool  # whether it has not ended


def record_flights() -> None:
    """Have torch remember its last collectives. Call it before torch is imported."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", str(ENTRIES))


def group_states() -> list[GroupState]:
    """All process groups that were used, those of which this rank waits for others first."""
    groups = {name: (ranks, text) for name, ranks, text in _groups()}
    entries, status = _trace()
    found = [
        _state(of, groups[name], status.get(str(identity), {}))
        for (identity, name), of in entries.items()
        if name in groups
    ]
    return sorted(found, key=lambda state: not state.waits)


def _state(entries: list[dict[str, Any]], group: tuple[tuple[int, ...], str], status: dict[str, Any]) -> GroupState:
    ranks, name = group
    pending = [entry for entry in entries if not entry["retired"] and entry["state"] != "completed"]
    told = pending[0] if pending else entries[-1]
    collectives = [entry for entry in entries if not entry["is_p2p"]]  # numbered apart from sends and receives
    begun = max((entry["collective_seq_id"] for entry in collectives), default=0)
    started = int(status.get("last_started_collective", -1))  # NCCL: on the device; -1 under gloo, which has none
    operation = told["profiling_name"].partition(":")[2] or told["profiling_name"]
    number = 0 if told["is_p2p"] else told["collective_seq_id"]
    return GroupState(name, ranks, started if started >= 0 else begun, operation, number, bool(pending))


def _trace() -> tuple[dict[tuple[int, str], list[dict[str, Any]]], dict[str, Any]]:
    """Operations by group, oldest first, and what the recorder says of each group."""
    import torch._C._distributed_c10d as c10d

    names = ("_dump_nccl_trace_json", "_dump_fr_trace_json")
    dumps = [json.loads(getattr(c10d, name)()) for name in names if hasattr(c10d, name)]
    entries: dict[tuple[int, str], list[dict[str, Any]]] = {}
    status: dict[str, Any] = {}
    for dump in dumps:
        status.update(dump.get("pg_status", {}))
        for entry in sorted(dump.get("entries", ()), key=lambda found: found["record_id"]):
            entries.setdefault((entry["pg_id"], entry["process_group"][0]), []).append(entry)
    return entries, status


def _groups() -> list[tuple[str, tuple[int, ...], str]]:
    """(torch's name, ranks, ours or megatron-core's name) of every group; torch has no public list of them."""
    import torch.distributed as dist

    world = dist.distributed_c10d._world
    return [
        (name, tuple(sorted(world.pg_group_ranks[group])), _spoken(group.group_desc))
        for group, name in list(world.pg_names.items())
        if group in world.pg_group_ranks
    ]


def _spoken(text: str) -> str:
    """TENSOR_MODEL_PARALLEL_GROUP as people say it: tensor."""
    if text in ("default_pg", "undefined", ""):
        return "world" if text == "default_pg" else "unnamed group"
    for theirs, ours in (("_MODEL_PARALLEL", ""), ("_PARALLEL", ""), ("_GROUP", ""), ("_WITH_CP", "_x_context")):
        text = text.replace(theirs, ours)
    return text.lower().replace("_", " ")
