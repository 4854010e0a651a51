"""`job:` of a recipe: what `triaxis submit` asks a scheduler for. The site itself is `cluster:`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields


class JobError(ValueError):
    """A job that cannot be: the message names the option, the value, the limit and the cure."""


ONLY_SLURM = ("nodes", "least_nodes", "exclude", "nodelist", "dependency", "chain_as")
"""Fields that mean nothing to the queue of this machine."""


@dataclass(frozen=True)
class JobConfig:
    """What a job asks for, and what becomes of it when it ends early."""

    nodes: int = 0
    """Nodes; 0: as many as the mesh needs."""
    least_nodes: int = 0
    """Fewest nodes that an attempt may run on when others are gone: fewer data-parallel ranks share the same global batch.
    0: all of them, always."""
    time: str = ""
    """Time limit of one job: minutes, HH:MM:SS or D-HH:MM:SS; empty for the partition's own."""
    signal_seconds: int = 300
    """Seconds before the time limit at which ranks are told to save (SIGUSR2, since NCCL uses SIGUSR1)."""
    requeue: bool = True
    """Queue the job again after a time limit, a preemption or a failed node; false where a site forbids it."""
    restarts: int = 3
    """Attempts in a row that may end without a newer checkpoint before the run is given up."""
    chain: int = 1
    """Jobs, one after another, that share the run where one time limit is not enough; more than 1 instead of requeueing."""
    chain_as: str = "dependency"
    """dependency: each job waits for the end of the one before; array: tasks of one job array, one at a time (%1)."""
    dependency: str = ""
    """What to wait for first, as sbatch --dependency takes it: afterok:1234, singleton …"""
    exclude: tuple[str, ...] = ()
    """Nodes that are not wanted."""
    nodelist: tuple[str, ...] = ()
    """Nodes that must be among the job's."""

    def __post_init__(self) -> None:
        """Refuse what no job is."""
        limits = {"nodes": 0, "least_nodes": 0, "signal_seconds": 1, "restarts": 1, "chain": 1}
        for option, limit in limits.items():
            if getattr(self, option) < limit:
                raise JobError(f"job.{option}={getattr(self, option)}: must be at least {limit}")
        if self.chain_as not in ("dependency", "array"):
            raise JobError(f"job.chain_as={self.chain_as}: choose one of dependency, array")
        if self.chain_as == "array" and self.chain == 1:
            raise JobError("job.chain_as=array: has no effect with job.chain=1; set job.chain above 1")
        if self.chain > 1 and not self.time:
            raise JobError(
                f"job.chain={self.chain}: a chain cuts a run at time limits, and job.time is empty; set job.time"
            )
        limit = seconds_of(self.time, "job.time")
        if limit and self.signal_seconds >= limit:
            raise JobError(
                f"job.signal_seconds={self.signal_seconds}: must be shorter than job.time={self.time}, {limit} seconds"
            )
        if self.least_nodes and self.nodes and self.least_nodes > self.nodes:
            raise JobError(f"job.least_nodes={self.least_nodes}: more than job.nodes={self.nodes}; lower it")

    @property
    def seconds(self) -> int:
        """The time limit in seconds, 0 for none of its own."""
        return seconds_of(self.time, "job.time")

    def check_local(self) -> None:
        """Refuse what the queue of this machine has no use for."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in ONLY_SLURM and value != item.default:
                raise JobError(
                    f"job.{item.name}={value}: has no effect with cluster.scheduler=local, one machine where jobs run in "
                    "order; leave it out or choose another cluster"
                )


_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def seconds_of(text: str, option: str) -> int:
    """A time limit as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S. 0 for an empty one."""
    if not text:
        return 0
    found = _TIME.fullmatch(text)
    if not found:
        raise JobError(f"{option}={text}: is no time limit; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, first, second, third = (int(part) if part else 0 for part in found.groups())
    if found[1] is not None or found[4] is not None:
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 1:
        raise JobError(f"{option}={text}: must be at least a second")
    return seconds


def time_text(seconds: int) -> str:
    """A time limit as D-HH:MM:SS or HH:MM:SS."""
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock
