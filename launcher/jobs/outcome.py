"""How an attempt ended: what its ranks left word of (launcher/failure.py), and what their starter said, in one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.exits import AGAIN, DONE
from launcher.failure import judge

LONGEST = 300  # letters of a reason


@dataclass(frozen=True)
class Outcome:
    """code: one of launcher/exits.py. node: where a rank failed first, empty where that is not known."""

    code: int
    reason: str
    node: str = ""


def outcome_of(run: Path, code: int, said: Sequence[str], nodes: Sequence[str], tasks: int) -> Outcome:
    """What became of ranks that have all ended.

    code: of srun or of the starter on this machine. said: their error lines. tasks: ranks on each of the nodes.
    """
    verdict = judge(run, len(nodes) * tasks, code)
    if verdict.code == DONE:
        return Outcome(DONE, "finished")
    if verdict.code == AGAIN:
        return Outcome(AGAIN, verdict.reason or "told to save")
    if verdict.first is not None:
        node = nodes[verdict.first.rank // tasks] if verdict.first.rank // tasks < len(nodes) else ""
        place = f" (node {node})" if len(nodes) > 1 and not verdict.first.echo else ""
        return Outcome(verdict.code, one_line(verdict.reason) + place, "" if verdict.first.echo else node)
    return Outcome(verdict.code, _first_word(said) or verdict.reason, _first_node(said, nodes))


def one_line(text: str) -> str:
    """A message as a line that fits a table."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def _first_word(said: Sequence[str]) -> str:
    """The line in which srun names a task that failed, or a step that it could not start."""
    for line in said:
        if re.search(r"error:.*(task|launch|create)|failed first|was killed by|ended with exit", line):
            return one_line(re.sub(r"^srun: (error: )?", "", line))
    return ""


def _first_node(said: Sequence[str], nodes: Sequence[str]) -> str:
    for line in said:
        if (found := re.match(r"srun: error: ([^:\s]+): tasks? ", line)) and found[1] in nodes:
            return found[1]
    return ""
