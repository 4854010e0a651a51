"""CUDA C++ kernels: `.cu` files built by nvcc, see `building`."""

from __future__ import annotations

import ctypes
import os
import shutil
from functools import lru_cache
from pathlib import Path

import torch

from models.kernels.runtime.building import BuildError, built


def nvcc() -> str | None:
    """nvcc of CUDA_HOME, or of the PATH."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")


@lru_cache
def library(source: Path, architecture: str) -> ctypes.CDLL:
    """The library of a `.cu` file for an architecture such as `sm_90a`. BuildError."""
    compiler = nvcc()
    if compiler is None:
        raise BuildError(f"{source.name}: nvcc was not found; install the CUDA toolkit or set CUDA_HOME")
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", "-cudart", "static"]
    return built(source, architecture, compiler, [*options, generate_code(architecture)])


def generate_code(architecture: str) -> str:
    """nvcc's option for one architecture."""
    return f"-gencode=arch={architecture.replace('sm_', 'compute_')},code={architecture}"


def architecture_of(device: torch.device) -> str:
    """`sm_90a` and the like of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}{'a' if major >= 9 else ''}"


def stream(device: torch.device) -> ctypes.c_void_p:
    """The stream that torch uses now."""
    return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)


def check(code: int, what: str) -> None:
    """A C function's result: CUDA's error code."""
    if code:
        raise RuntimeError(f"{what}: CUDA error {code}")
