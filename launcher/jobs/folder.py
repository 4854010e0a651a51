"""`<run>/jobs/NNN/`: one submission of a run, and all that its jobs need.

job.sh             the batch script
recipe_<n>.yaml    the resolved recipe on n nodes
submission.json    what the jobs' controller reads (no YAML: it runs with whatever Python the batch host has)
links.json         ids that the scheduler gave, in the order of the chain
code/              the code as it was; changes.diff says how it differs from its commit
output.log         what the script and its controller said
stopped.json       nothing of this submission is to run any more, and why
nodes.json         nodes that failed, and how
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Submission:
    """What the controller of a job goes by; written once."""

    name: str
    run: str  # the run's directory, absolute
    scheduler: str
    nodes: int
    tasks: int  # ranks on a node
    sizes: tuple[int, ...]  # numbers of nodes that an attempt may have, most first; recipe_<n>.yaml each
    model_parallel: int  # ranks that go together: a world is a multiple of it
    threads: int  # of each rank, 0 shares the cores out
    device: str
    python: str  # of ranks
    total_steps: int
    total_tokens: int
    restarts: int
    requeue: bool
    chain: int
    signal_seconds: int
    seconds: int  # time limit, 0 for none
    revision: str
    submitted: float
    work: str  # directory that the job runs in
    partition: str = ""
    srun: tuple[str, ...] = ()  # options besides our own
    environment: dict[str, str] = field(default_factory=dict)


class Folder:
    """The files of one submission."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.script = path / "job.sh"
        self.output = path / "output.log"
        self.code = path / "code"

    @property
    def run(self) -> Path:
        """The run's directory."""
        return self.path.parent.parent

    def recipe(self, nodes: int) -> Path:
        """The frozen recipe on so many nodes."""
        return self.path / f"recipe_{nodes}.yaml"

    def write(self, submission: Submission) -> None:
        """Keep what the controller reads."""
        write_json(self.path / "submission.json", asdict(submission))

    def read(self) -> Submission:
        """What `write` kept."""
        found = json.loads((self.path / "submission.json").read_text())
        tuples = {name: tuple(found[name]) for name in ("sizes", "srun")}
        return Submission(**{**found, **tuples})

    @property
    def links(self) -> list[str]:
        """Ids of the jobs of the chain, as far as they are submitted."""
        return list(read_json(self.path / "links.json") or [])

    def add_link(self, job: str) -> None:
        """Note one more job of the chain."""
        write_json(self.path / "links.json", [*self.links, job])

    @property
    def stopped(self) -> dict[str, Any] | None:
        """Why nothing of this submission is to run any more; None where it may."""
        return read_json(self.path / "stopped.json")

    def stop(self, code: int, reason: str) -> None:
        """Let no further attempt start. code: what later jobs of the submission exit with."""
        if self.stopped is None:
            write_json(self.path / "stopped.json", {"code": code, "reason": reason})

    @property
    def bad_nodes(self) -> dict[str, str]:
        """Nodes that failed, and how."""
        return read_json(self.path / "nodes.json") or {}

    def add_bad_node(self, node: str, how: str) -> None:
        """Note a node that failed."""
        write_json(self.path / "nodes.json", {**self.bad_nodes, node: how})


def new_folder(run: Path) -> Folder:
    """Make the folder of the next submission of a run."""
    jobs = run / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    number = max((int(path.name) for path in jobs.iterdir() if path.name.isdigit()), default=0) + 1
    while True:
        path = jobs / f"{number:03d}"
        try:
            path.mkdir()
            return Folder(path)
        except FileExistsError:  # somebody else submits the same run
            number += 1


def folders(run: Path) -> list[Folder]:
    """The submissions of a run, oldest first; one that was not completed is left out."""
    found = sorted(path for path in (run / "jobs").glob("[0-9]*") if (path / "submission.json").exists())
    return [Folder(path) for path in found]


def write_json(path: Path, value: Any) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(value, indent=1))
    partial.replace(path)


def read_json(path: Path) -> Any:
    """What a file holds, None where it is not there or not whole."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return None
