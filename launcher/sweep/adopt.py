"""A configuration that another sweep of the same directory has finished is not run again: its figures are taken over, and the
run stays where it is."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Collection

from launcher.sweep.points import fingerprint, modern
from launcher.sweep.store import FILE_NAME, Store


def adopt(store: Store, names: Collection[str]) -> dict[str, int]:
    """Take over what waits here and is done in a sibling; returns how many by the sibling's directory."""
    waiting = {row.fingerprint for row in store.rows() if row.state == "waiting"} & set(names)
    found: Counter[str] = Counter()
    for place in sorted(store.directory.resolve().parent.glob(f"*/{FILE_NAME}")) if waiting else ():
        if place.parent == store.directory.resolve():
            continue
        for configuration, directory, figures in _done(str(place)):
            run, name = place.parent / directory, fingerprint(modern(json.loads(configuration)))
            if name in waiting and (run / "summary.json").is_file():
                waiting.remove(name)
                here = os.path.relpath(run, store.directory.resolve())
                found[place.parent.name] += store.adopt(name, here, json.loads(figures))
    return dict(found)


def _done(place: str) -> list[tuple[str, str, str]]:
    """(configuration, directory, figures) of the finished runs of a table that is not ours to write."""
    try:
        base = sqlite3.connect(f"file:{place}?mode=ro", uri=True, timeout=5)
        try:
            return base.execute("SELECT configuration, directory, figures FROM runs WHERE state = 'done'").fetchall()
        finally:
            base.close()
    except sqlite3.Error:  # locked, or no table of ours: then the run is run
        return []
