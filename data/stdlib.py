"""The text that every machine with Python has: the standard library's sources, its tests and compiled modules' help.

About 30 MB in 1,800 files with CPython 3.11; a distribution that ships no tests has 12 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data.config import DataError

NAME = "stdlib"
"""The source name that stands for this text."""

_FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})

# Compiled modules have no source here, only docstrings. They are imported in a process of their own: some have side
# effects. Modules that only test the interpreter, and a few that talk to a terminal or open a window, are left alone.
_COLLECT = r"""
import importlib, inspect, json, sys
def text(name):
    module = importlib.import_module(name)
    if getattr(module, "__file__", None) and module.__file__.endswith(".py"):
        return ""
    parts, seen = [], set()
    def visit(label, value):
        doc = getattr(value, "__doc__", None)
        if isinstance(doc, str) and doc not in seen:
            seen.add(doc)
            parts.append(label + "\n\n" + inspect.cleandoc(doc) + "\n")
    visit(name, module)
    for key in sorted(vars(module)):
        value = vars(module)[key]
        if inspect.isclass(value) and value.__module__ == name:
            visit(name + "." + key, value)
            for member in sorted(vars(value)):
                if callable(vars(value)[member]):
                    visit(name + "." + key + "." + member, vars(value)[member])
        elif inspect.isbuiltin(value):
            visit(name + "." + key, value)
    return "\n".join(parts)
left_out = {"readline", "_tkinter", "_curses", "_curses_panel", "antigravity", "this"}
for name in sorted(sys.stdlib_module_names - left_out):
    if name.startswith(("_test", "_xxtest", "xx", "idlelib", "__")):
        continue
    if importlib.util.find_spec(name) is None or (importlib.util.find_spec(name).origin or "").endswith(".py"):
        continue
    try:
        found = text(name)
    except Exception:
        continue
    if found:
        print(json.dumps(found))
"""


def source_files() -> list[tuple[Path, str, int]]:
    """(file, name within the library, size in bytes) of every .py file, sorted by name, without what pip installed."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for directory, names, files in os.walk(root):
        names[:] = [name for name in names if name not in _FOREIGN]
        for name in files:
            if name.endswith(".py"):
                file = Path(directory, name)
                found.append((file, file.relative_to(root).as_posix(), file.stat().st_size))
    if not found:
        raise DataError(f"corpus.sources: stdlib has no sources at {root}; name other text in corpus.sources")
    return sorted(found, key=lambda item: item[1])


def docstrings() -> Iterator[str]:
    """The docstrings of each compiled module of the standard library, one text a module, in order of name."""
    command = [sys.executable, "-I", "-W", "ignore", "-c", "import importlib.util\n" + _COLLECT]
    result = subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=120
    )
    if result.returncode:
        raise DataError(f"corpus.sources: the docstrings of stdlib cannot be collected: {result.stderr.strip()[-500:]}")
    for line in result.stdout.splitlines():
        yield json.loads(line)
