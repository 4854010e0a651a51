"""AdamW in CUDA C++ (`kernel.cu`): the same tables, the same bits."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from models.kernels.adamw.scalars import Scalars
from models.kernels.adamw.tables import Tables
from models.kernels.runtime.building import pointer
from models.kernels.runtime.cuda import architecture_of, check, library, stream

SOURCE = Path(__file__).with_name("kernel.cu")


def step(tables: Tables, gradient: torch.dtype, scalars: Scalars, factor: Tensor, partials: Tensor | None) -> None:
    """See `models.kernels.adamw.triton.step`."""
    numbers = (ctypes.c_float * 7)(*scalars.tuple())
    mode = 2 if tables.stochastic else 1 if tables.shadowed else 0
    code = library(SOURCE, architecture_of(tables.device)).adamw(
        pointer(tables.rows),
        pointer(tables.chunks),
        ctypes.c_int64(len(tables.chunks)),
        pointer(factor),
        pointer(partials),
        ctypes.byref(numbers),
        int(gradient == torch.bfloat16),
        mode,
        stream(tables.device),
    )
    check(code, "adamw")
