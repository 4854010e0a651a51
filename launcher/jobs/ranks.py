"""`python -m launcher.jobs.ranks FOLDER RECIPE`: the ranks of one attempt on this machine, as srun would start them."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.jobs.folder import Folder
from launcher.machine import threads_for
from launcher.workers import WorkerError, die_with_parent, run_workers


def main(arguments: list[str]) -> int:
    """Start ranks, pass signals on, wait; returns their exit code."""
    from launcher.cluster import ClusterConfig

    die_with_parent()
    submission = Folder(Path(arguments[0])).read()
    world, device = submission.nodes * submission.tasks, submission.device
    threads = threads_for(ClusterConfig(threads=submission.threads), world)
    try:
        return run_workers(Path(submission.run), Path(arguments[1]), world, threads, device)
    except WorkerError as error:
        print(error, file=sys.stderr)
        return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
