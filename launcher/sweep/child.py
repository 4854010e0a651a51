"""`python -m launcher.sweep.child train …`: a `triaxis` command that does not outlive the sweep that started it.

However the sweep ends, the kernel ends this process and with it its ranks, so that whoever goes on never finds a run's
directory in use. What was saved stays.
"""

from __future__ import annotations

import sys

from launcher.workers import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    from launcher.cli import main

    sys.exit(main(sys.argv[1:]))
