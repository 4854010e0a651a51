"""Calls of `kernel.cpp`."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import torch
from torch import Tensor

from models.kernels.runtime.building import pointer
from models.kernels.runtime.cpp import library, seen_along
from models.kernels.runtime.rows import in_memory

SOURCE = Path(__file__).with_name("kernel.cpp")


def rotate(x: Tensor, dim: int, size: int, signs: Tensor | None) -> Tensor:
    """x rotated along `dim`, not negative, which comes last: float32, contiguous."""
    found = torch.empty(x.movedim(dim, -1).shape, dtype=torch.float32)
    x, dim = in_memory(x, dim)
    signs = None if signs is None else signs.to(torch.float32).contiguous()
    if x.numel():
        library(SOURCE).hadamard(
            *seen_along(x, dim), ctypes.c_long(size), pointer(signs), ctypes.c_float(1 / math.sqrt(size)), pointer(found),
            torch.get_num_threads(),
        )  # fmt: skip
    return found
