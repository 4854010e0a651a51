"""What `triaxis train` does before it starts a rank, timed in a process of its own, and the rank up to its first step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

from launcher.bench.turns import BORN, ROOT, BenchError


def launcher_seconds(overrides: list[str], frozen: Path) -> dict[str, float]:
    """Parts of the launcher's share. overrides: what is composed; frozen: a recipe whose corpus and layout are checked."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, BORN: repr(time.monotonic())}
    command = [sys.executable, "-m", "launcher.bench.startup", str(frozen), *overrides]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{command[2]}: ended with exit code {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Do as `launcher.submit.train_recipe` does, up to where it would start ranks."""
    import launcher.cli  # noqa: F401  as the command does
    from launcher.check import check_corpus, check_layout
    from launcher.compose import build_recipe, compose_tree, load_recipe
    from launcher.submit import build_corpus

    marks = [float(os.environ[BORN]), time.monotonic()]
    build_recipe(compose_tree(arguments[1:]))
    marks.append(time.monotonic())
    recipe = load_recipe(Path(arguments[0]))
    build_corpus(recipe)
    check_layout(check_corpus(recipe), 1)
    marks.append(time.monotonic())
    names = ("interpreter and imports", "compose", "check of corpus and layout")
    print(json.dumps(dict(zip(names, (b - a for a, b in pairwise(marks)), strict=True))))


if __name__ == "__main__":
    main(sys.argv[1:])
