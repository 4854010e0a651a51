"""Kernels in C++ and CUDA C++: one file with a C interface, built by the machine's compiler at first use, kept, and called
through ctypes.

Such a library knows neither torch nor Python, so it outlives their versions, and nothing has to be built to install
Triaxis. A build that fails leaves the kernel to another implementation.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

log = logging.getLogger(__name__)

INPUTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Dtypes that kernels read, by the number they know them by."""


class BuildError(RuntimeError):
    """A kernel that cannot be built: the message says why, and what would help."""


def cache_directory() -> Path:
    """Where built kernels are kept: TRIAXIS_CACHE, else the user's cache."""
    home = os.environ.get("TRIAXIS_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triaxis"
    return base / "kernels"


def built(source: Path, architecture: str, compiler: str, options: list[str]) -> ctypes.CDLL:
    """The library of a file for an architecture, built unless it was before from the same text, by the same compiler.
    BuildError."""
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{source.name}: {compiler} does not run: {error}") from None
    headers = (path for folder in (source.parent, Path(__file__).parent) for path in sorted(folder.glob("*.h")))
    text = b"".join(path.read_bytes() for path in (source, *headers))
    name = hashlib.sha256(text + version + " ".join([architecture, *options]).encode()).hexdigest()[:20]
    target = cache_directory() / f"{source.parent.name}-{architecture}-{name}.so"
    try:
        if not target.exists():
            log.warning("kernels: %s for %s is built, once on this machine", source.parent.name, architecture)
            with _one_at_a_time(target):
                if not target.exists():
                    _build([compiler, *options], source, architecture, target)
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise BuildError(f"{source.name}: {target} cannot be kept or loaded ({error}); set TRIAXIS_CACHE") from None


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """Of all ranks of a machine that want the same library first one builds it, and the others wait. A lock ends with its
    process; where a file system has none, each builds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_suffix(".lock").open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(command: list[str], source: Path, architecture: str, target: Path) -> None:
    """Build beside the target and move it there: whoever sees it sees it whole."""
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        made = Path(directory) / target.name
        ran = subprocess.run([*command, "-o", str(made), str(source)], capture_output=True, text=True, check=False)
        if ran.returncode:
            told = "\n".join(ran.stderr.strip().splitlines()[-8:])
            raise BuildError(f"{source.name}: {Path(command[0]).name} failed for {architecture}:\n{told}")
        os.replace(made, target)


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """A tensor's address for a C function; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())
