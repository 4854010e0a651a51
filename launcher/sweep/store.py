"""`sweep.db`: the table of a sweep's runs, in SQLite, safe against several writers on a file system that locks.

Points (labels) stand for runs (configurations): two points of one configuration are one run. A run is waiting, running, done
or failed. Whoever runs one owns it and beats every few seconds; what an owner left by dying is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.sweep.config import SweepError
from launcher.sweep.points import Planned, Point, differences, fingerprint

FILE_NAME = "sweep.db"
STALE_SECONDS = 120.0  # without a beat, after which an owner on another machine counts as dead
STATES = ("waiting", "running", "done", "failed")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS points (
    labels TEXT PRIMARY KEY, position INTEGER NOT NULL, fingerprint TEXT NOT NULL REFERENCES runs);
CREATE TABLE IF NOT EXISTS runs (
    fingerprint TEXT PRIMARY KEY, configuration TEXT NOT NULL, overrides TEXT NOT NULL, directory TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL, owner TEXT NOT NULL DEFAULT '', heartbeat REAL NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
    figures TEXT NOT NULL DEFAULT '{}');
"""


@dataclass(frozen=True)
class Row:
    """A point and the run that it stands for. directory: below the sweep's; heartbeat: seconds since the epoch."""

    labels: dict[str, str]
    fingerprint: str
    overrides: tuple[str, ...]
    directory: str
    state: str
    owner: str
    heartbeat: float
    error: str
    figures: dict[str, Any]

    @property
    def name(self) -> str:
        """The labels in words."""
        return " ".join(f"{axis}={label}" for axis, label in self.labels.items())


class Store:
    """A sweep's table. Every call is a transaction of its own."""

    def __init__(self, directory: Path, *, create: bool = False) -> None:
        self.directory = directory
        if not create and not (directory / FILE_NAME).is_file():
            raise SweepError(f"{directory}: holds no sweep ({FILE_NAME} is missing); name a sweep's directory")
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # WAL: readers see a whole table while somebody writes
            self._base = sqlite3.connect(directory / FILE_NAME, timeout=30, isolation_level=None)
            self._base.row_factory = sqlite3.Row
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise SweepError(f"{directory}: its {FILE_NAME} cannot be opened ({error}); set sweep.dir") from error

    def close(self) -> None:
        """Give the file back."""
        self._base.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that begins as a writer, so that what is read in it stays true until it is written."""
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield self._base
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    # What the sweep is

    def describe(self, sweep: dict[str, Any]) -> None:
        """Keep how figures are laid beside one another: the sweep's section in plain data. Labels may grow, axes may not."""
        with self._writing() as base:
            known = base.execute("SELECT value FROM about WHERE name = 'sweep'").fetchone()
            if known is not None and (old := list(json.loads(known["value"])["axes"])) != list(sweep["axes"]):
                raise SweepError(
                    f"sweep.axes: {self.directory} has the axes {', '.join(old)}, not {', '.join(sweep['axes'])}; set "
                    "sweep.name to begin another sweep"
                )
            base.execute("INSERT OR REPLACE INTO about VALUES ('sweep', ?)", (json.dumps(sweep),))

    def description(self) -> dict[str, Any]:
        """What `describe` kept."""
        found = self._base.execute("SELECT value FROM about WHERE name = 'sweep'").fetchone()
        if found is None:
            raise SweepError(f"{self.directory}: its sweep was never begun; start it with `triaxis sweep`")
        return json.loads(found["value"])

    def add(self, planned: Sequence[Planned]) -> list[str]:
        """Enter points that are new; returns the fingerprint of each. A configuration that is known keeps its run.

        SweepError where a point is known by a configuration that ran.
        """
        with self._writing() as base:
            return [self._add(base, one) for one in planned]

    def _add(self, base: sqlite3.Connection, planned: Planned) -> str:
        labels, new = json.dumps(planned.point.labels), planned.configuration
        known = base.execute(
            "SELECT * FROM points JOIN runs USING (fingerprint) WHERE labels = ?", (labels,)
        ).fetchone()
        if known is not None:
            differing = differences(json.loads(known["configuration"]), new)
            if not differing:
                return self._keep(base, planned, known["fingerprint"])
            if known["state"] in ("done", "running"):
                more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
                raise SweepError(
                    f"{self.directory}: {planned.point.name} is {known['state']} there by another recipe "
                    f"({', '.join(differing[:3])}{more}); set sweep.name to begin another sweep"
                )
        name = fingerprint(new)
        base.execute(
            "INSERT OR IGNORE INTO runs (fingerprint, configuration, overrides, directory, state) "
            "VALUES (?, ?, ?, ?, 'waiting')",
            (name, json.dumps(new), json.dumps(planned.point.overrides), self._directory_for(base, planned, name)),
        )
        base.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", (labels, planned.point.position, name))
        return name

    def refuse(self, point: Point, error: str) -> None:
        """Enter a point that no recipe can be, as failed."""
        name = fingerprint({"refused": list(point.overrides)})
        with self._writing() as base:
            base.execute(
                "INSERT OR IGNORE INTO runs (fingerprint, configuration, overrides, directory, state, error) "
                "VALUES (?, '{}', ?, ?, 'failed', ?)",
                (name, json.dumps(point.overrides), f"runs/{name}", error),
            )
            place = (json.dumps(point.labels), point.position, name)
            base.execute("INSERT OR REPLACE INTO points VALUES (?, ?, ?)", place)

    @staticmethod
    def _keep(base: sqlite3.Connection, planned: Planned, run: str) -> str:
        """A known point: axes may have grown since, and what changes no figure may be another."""
        place = (planned.point.position, json.dumps(planned.point.labels))
        base.execute("UPDATE points SET position = ? WHERE labels = ?", place)
        base.execute(
            "UPDATE runs SET overrides = ? WHERE fingerprint = ? AND state IN ('waiting', 'failed')",
            (json.dumps(planned.point.overrides), run),
        )
        return run

    @staticmethod
    def _directory_for(base: sqlite3.Connection, planned: Planned, name: str) -> str:
        words = "_".join(planned.point.labels.values())
        plain = "".join(letter if letter.isalnum() or letter in "-+._" else "-" for letter in words).strip(".") or name
        taken = base.execute("SELECT 1 FROM runs WHERE directory = ?", (f"runs/{plain}",)).fetchone()
        return f"runs/{plain}_{name}" if taken else f"runs/{plain}"

    # Whose turn it is

    def claim(self, among: Collection[str], owner: str) -> Row | None:
        """The next run that waits, or whose owner is dead, is this owner's now; None where there is none."""
        with self._writing() as base:
            for row in self._rows():
                free = row.state == "waiting" or (row.state == "running" and not alive(row.owner, row.heartbeat))
                if row.fingerprint in among and free:
                    base.execute(
                        "UPDATE runs SET state = 'running', owner = ?, heartbeat = ?, error = '' WHERE fingerprint = ?",
                        (owner, time.time(), row.fingerprint),
                    )
                    return row
        return None

    def beat(self, run: str, owner: str) -> bool:
        """Say that the owner lives; False where the run is no longer its own."""
        with self._writing() as base:
            done = base.execute(
                "UPDATE runs SET heartbeat = ? WHERE fingerprint = ? AND owner = ?", (time.time(), run, owner)
            )
            return done.rowcount > 0

    def leave(
        self, run: str, owner: str, state: str, *, error: str = "", figures: dict[str, Any] | None = None
    ) -> None:
        """The owner is done with a run, which is `state` from now on; nothing where the run is another's by now."""
        with self._writing() as base:
            base.execute(
                "UPDATE runs SET state = ?, owner = '', error = ?, figures = ? WHERE fingerprint = ? AND owner = ?",
                (state, error, json.dumps(figures or {}), run, owner),
            )

    def adopt(self, run: str, directory: str, figures: dict[str, Any]) -> bool:
        """A run that waits is done by what another sweep has of it. directory: where that lies, from this sweep's."""
        with self._writing() as base:
            done = base.execute(
                "UPDATE runs SET state = 'done', directory = ?, figures = ? WHERE fingerprint = ? AND state = 'waiting'",
                (directory, json.dumps(figures), run),
            )
            return done.rowcount > 0

    def retry(self, among: Collection[str]) -> int:
        """Failed runs wait again; returns how many."""
        with self._writing() as base:
            failed = {row.fingerprint for row in self._rows() if row.state == "failed"} & set(among)
            for run in failed:
                base.execute("UPDATE runs SET state = 'waiting' WHERE fingerprint = ?", (run,))
        return len(failed)

    # Reading

    def rows(self) -> list[Row]:
        """Every point, in the order of the axes."""
        return list(self._rows())

    def _rows(self) -> Iterator[Row]:
        for found in self._base.execute(
            "SELECT * FROM points JOIN runs USING (fingerprint) ORDER BY position, labels"
        ).fetchall():
            yield Row(
                labels=json.loads(found["labels"]),
                fingerprint=found["fingerprint"],
                overrides=tuple(json.loads(found["overrides"])),
                directory=found["directory"],
                state=found["state"],
                owner=found["owner"],
                heartbeat=found["heartbeat"],
                error=found["error"],
                figures=json.loads(found["figures"]),
            )


def new_owner() -> str:
    """A name for this process that no other has, by which others on this machine see whether it lives."""
    return f"{_place()} {os.getpid()} {_began(os.getpid())} {uuid.uuid4().hex[:8]}"


def alive(owner: str, heartbeat: float) -> bool:
    """Whether an owner lives: on this machine by its process, elsewhere by its beats."""
    place, pid, began, _ = owner.rsplit(" ", 3)
    if place == _place():
        return _began(int(pid)) == began
    return time.time() - heartbeat < STALE_SECONDS


def _place() -> str:
    """The machine, and the namespace in which its process ids count (a container has its own)."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _began(pid: int) -> str:
    """When a process began, in clock ticks since boot; empty where it is gone or only its exit code is left."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]
