"""Starting modules of Triaxis as processes of their own."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from types import MappingProxyType

ROOT = Path(__file__).resolve().parent.parent


def start_module(
    module: str,
    *arguments: str,
    log: Path,
    variables: Mapping[str, str] = MappingProxyType({}),
    terminal: bool = False,
    pipes: Sequence[int] = (),
) -> Popen:
    """`python -m module arguments`, with this code first in its path and variables beside those of this process.

    log: file that its output is added to; with `terminal`, that of standard error alone. pipes: file descriptors that it
    inherits. It has no input, and a session of its own: Ctrl-C reaches whoever started it alone.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(log, "ab") as file:
        return Popen(
            [sys.executable, "-u", "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": path, **variables},
            stdin=DEVNULL,
            stdout=None if terminal else file,
            stderr=file if terminal else STDOUT,
            pass_fds=tuple(pipes),
            start_new_session=True,
        )
