"""`python -m launcher.sweep.child train …`: a `triaxis` command that does not outlive the sweep that started it.

However the sweep ends, the kernel ends this process and with it its ranks, so that whoever goes on never finds a run's
directory in use. What was saved stays.
"""

from __future__ import annotations

import os
import sys

from launcher.workers import die_with_parent

CORES = "TRIAXIS_CORES"  # the environment's list of cores for this command and all that it starts

if __name__ == "__main__":
    die_with_parent()
    os.sched_setaffinity(0, map(int, os.environ[CORES].split(",")))
    from launcher.cli import main

    sys.exit(main(sys.argv[1:]))
