"""C++ kernels for processors: `.cpp` files built by the system's compiler, see `building`."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.kernels.runtime.building import INPUTS, BuildError, built, pointer

_LEVELS = {"AVX2": "x86-64-v3", "AVX512": "x86-64-v4"}
"""Levels of the x86-64 psABI by what torch finds a processor able to do: all that have one share a build."""


def library(source: Path) -> ctypes.CDLL:
    """The library of a `.cpp` file for this processor. BuildError, also for whoever asks again."""
    found = _attempt(source)
    if isinstance(found, BuildError):
        raise found
    return found


@lru_cache
def _attempt(source: Path) -> ctypes.CDLL | BuildError:
    """Once a process, whether it succeeds or not."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return BuildError(f"{source.name}: no C++ compiler was found; install g++ or set CXX")
    # Products and sums are rounded one by one, as everywhere; nothing else may be reordered either.
    options = ["-O3", "-std=c++17", "-ffp-contract=off", "-shared", "-fPIC", "-pthread"]
    level = architecture()
    if level.startswith("x86-64-"):
        options.append(f"-march={level}")
    try:
        return built(source, level, compiler, options)
    except BuildError as error:
        return error


def architecture() -> str:
    """`x86-64-v3` and the like; of others, the processor's name as the system has it."""
    return _LEVELS.get(torch.backends.cpu.get_cpu_capability(), platform.machine())


def seen_along(x: Tensor, dim: int) -> tuple[Any, ...]:
    """What kernels are told of contiguous x: address, dtype, and [outer, size, inner] with `size` along `dim`."""
    sizes = prod(x.shape[:dim]), x.shape[dim], prod(x.shape[dim + 1 :])
    return pointer(x), INPUTS[x.dtype], *map(ctypes.c_long, sizes)
