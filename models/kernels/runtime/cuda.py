"""CUDA C++ kernels: one `.cu` file with a C interface, built by nvcc at first use, kept, and called through ctypes.

Such a library knows neither torch nor Python, so it outlives their versions, and nothing has to be built to install
Triaxis. A build that fails leaves the kernel to Triton.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor


class BuildError(RuntimeError):
    """A CUDA kernel that cannot be built: the message says why, and what would help."""


def cache_directory() -> Path:
    """Where built kernels are kept: TRIAXIS_CACHE, else the user's cache."""
    home = os.environ.get("TRIAXIS_CACHE")
    base = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triaxis"
    return base / "kernels"


def nvcc() -> str | None:
    """nvcc of CUDA_HOME, or of the PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


@lru_cache
def library(source: Path, architecture: str) -> ctypes.CDLL:
    """The library of a `.cu` file for an architecture such as `sm_90a`, built unless it was before. BuildError."""
    text = source.read_bytes()
    compiler = nvcc()
    if compiler is None:
        raise BuildError(f"{source.name}: nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    name = hashlib.sha256(text + version + architecture.encode()).hexdigest()[:20]
    target = cache_directory() / f"{source.parent.name}-{architecture}-{name}.so"
    if not target.exists():
        _build(compiler, source, architecture, target)
    return ctypes.CDLL(str(target))


def _build(compiler: str, source: Path, architecture: str, target: Path) -> None:
    """Build beside the target and move it there: others may build the same at the same time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        made = Path(directory) / target.name
        command = [compiler, "-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
        command += [generate_code(architecture), "-o", str(made), str(source)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            told = "\n".join(ran.stderr.strip().splitlines()[-8:])
            raise BuildError(f"{source.name}: nvcc failed for {architecture}:\n{told}")
        os.replace(made, target)


def generate_code(architecture: str) -> str:
    """nvcc's option for one architecture."""
    return f"-gencode=arch={architecture.replace('sm_', 'compute_')},code={architecture}"


def architecture_of(device: torch.device) -> str:
    """`sm_90a` and the like of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """A tensor's address for a C function; null for None."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def stream(device: torch.device) -> ctypes.c_void_p:
    """The stream that torch uses now."""
    return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


def check(code: int, what: str) -> None:
    """A C function's result: CUDA's error code."""
    if code:
        raise RuntimeError(f"{what}: CUDA error {code}")
