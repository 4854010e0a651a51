"""A hang, told in one message: which rank is missing, where the others wait for it, and where everybody stands."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.pace import STEP
from parallel.flight import GroupState

SHOWN = 8  # ranks that a message names
TELLERS = 4  # hosts, and ranks of each


@dataclass(frozen=True)
class Report:
    """What one rank says of itself when a step has taken too long."""

    rank: int
    host: str
    pid: int
    step: int  # that it has made
    doing: str
    seconds: float  # for which it has been doing that
    at: str  # file, line and function of its main thread
    waits: bool  # its main thread stands in a collective, a send or a receive
    groups: tuple[GroupState, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """missing: the ranks that the others wait for. message: for people, without the names of files."""

    missing: tuple[int, ...]
    message: str


def report_path(directory: Path, rank: int, attempt: str) -> Path:
    """Where a rank leaves its report. attempt: what tells this start of the ranks from others."""
    return directory / "logs" / f"hang_{attempt}_rank_{rank:05d}.json"


def stacks_path(directory: Path, rank: int) -> Path:
    """Where a rank leaves the stacks of all its threads."""
    return directory / "logs" / f"hang_rank_{rank:05d}.txt"


def leave_report(directory: Path, report: Report, attempt: str) -> None:
    """Write a report, whole or not at all."""
    path = report_path(directory, report.rank, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(report)))
    partial.replace(path)


def count_reports(directory: Path, attempt: str) -> int:
    """How many reports have come."""
    return sum(1 for _ in (directory / "logs").glob(f"hang_{attempt}_rank_*.json"))


def tellers(roll: Sequence[tuple[str, int]]) -> list[int]:
    """The ranks that may have to tell, in order: a few of a few hosts, since reading thousands of reports burdens a server, and
    whole hosts fall silent."""
    of_host: dict[str, list[int]] = {}
    for rank, (host, _) in enumerate(roll):
        of_host.setdefault(host, []).append(rank)
    return sorted(rank for ranks in list(of_host.values())[:TELLERS] for rank in ranks[:TELLERS])


def read_reports(directory: Path, attempt: str, world: int) -> dict[int, Report]:
    """The reports that have come, by rank; of higher ranks an attempt of a larger world has left some."""
    found = {}
    for path in (directory / "logs").glob(f"hang_{attempt}_rank_*.json"):
        told = json.loads(path.read_text())
        if told["rank"] >= world:
            continue
        groups = tuple(GroupState(**{**group, "ranks": tuple(group["ranks"])}) for group in told.pop("groups"))
        found[told["rank"]] = Report(**told, groups=groups)
    return found


def diagnose(reports: dict[int, Report], roll: Sequence[tuple[str, int]]) -> Diagnosis:
    """Who is missing. roll: (host, process id) of every rank.

    A rank that says nothing is: its process is stopped or gone, or its node. Where all have spoken, it is whoever has not
    entered a collective that others wait in, and does not wait himself; else whoever does not wait at all.
    """
    silent = tuple(rank for rank in range(len(roll)) if rank not in reports)
    if silent:
        told = [f"{_named(rank, roll)} says nothing: {_silence(*roll[rank])}" for rank in silent]
        return Diagnosis(silent, f"{_few(told)}. {_waiting(reports, silent)}")
    late = {
        rank: group
        for report in reports.values()
        for group in report.groups
        if group.waits and group.number
        for rank in group.ranks
        if reports[rank].host and _entered(reports[rank], group) < group.number
    }
    missing = [rank for rank in late if not reports[rank].waits] or list(late)
    if not missing:
        missing = [rank for rank, report in reports.items() if not report.waits]
    if not missing:
        return Diagnosis((min(reports),), f"all ranks wait for one another. {_waiting(reports, ())}")
    told = []
    for rank in sorted(missing):
        where = f" at {late[rank].operation} {late[rank].number} of {late[rank].name}" if rank in late else ""
        told.append(f"{_named(rank, roll)} has not arrived{where}: {_stands(reports[rank])}")
    return Diagnosis(tuple(sorted(missing)), f"{_few(told)}. {_waiting(reports, missing)}")


def _entered(report: Report, group: GroupState) -> int:
    """How many collectives of a group a rank has begun; groups of equal name and ranks are one."""
    same = (own.entered for own in report.groups if (own.name, own.ranks) == (group.name, group.ranks))
    return max(same, default=0)


def _named(rank: int, roll: Sequence[tuple[str, int]]) -> str:
    host, pid = roll[rank]
    return f"rank {rank} (host {host}, process {pid})"


def _stands(report: Report) -> str:
    doing = f"step {report.step + 1}" if report.doing == STEP else report.doing
    return f"in {doing} for {report.seconds:.0f} s, at {report.at}"


def _waiting(reports: dict[int, Report], missing: Sequence[int]) -> str:
    """Where one of the others stands, and how many they are."""
    others = [report for rank, report in sorted(reports.items()) if rank not in missing]
    if not others:
        return "Nobody else is there"
    first = others[0]
    group = next((group for group in first.groups if group.waits), None)
    within = f" at {group.operation} {group.number or ''} of {group.name}".replace("  ", " ") if group else ""
    rest = f"; {len(others) - 1} more wait too" if len(others) > 1 else ""
    return f"Rank {first.rank} waits{within}: {_stands(first)}{rest}"


def _silence(host: str, pid: int) -> str:
    """Why a rank may say nothing; its process can be looked at where it is on this machine."""
    if host != os.uname().nodename:
        return "its process is stopped or gone, or its node is"
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "its process is gone"
    kinds = {"T": "stopped by a signal", "t": "stopped by a debugger", "D": "waiting for a device", "Z": "dead"}
    return f"its process is {kinds.get(state, 'there, but does not let its threads run')}"


def _few(told: Sequence[str]) -> str:
    more = f"; and {len(told) - SHOWN} more ranks" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more
