"""Which implementation of a kernel runs: chosen by the recipe's `kernels=`, the device, the dtype and the shape.

`reference` is plain torch, whose gradients autograd or a compiler sees through. The others are opaque operators: `triton`
(on CPU interpreted, to be looked at, not to be waited for), `cuda` (C++, where a kernel has it). `auto` takes the reference on
CPU and, on a GPU, the first of a kernel's own list that serves the case. `liger` and `apex` take those packages' kernel where
they have one, else what auto takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from models.kernels.choice import CHOICES as CHOICES

Serves = Callable[[torch.device, torch.dtype, tuple[int, ...]], str | None]
"""Why an implementation cannot take a tensor of this device, dtype and shape; None if it can."""


def serves_all(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> str | None:
    """An implementation without limits."""
    return None


@dataclass(frozen=True)
class Kernel:
    """A kernel's implementations. gpu: those that `auto` tries on a GPU, in order; `reference` comes last by itself. serves:
    limits of single ones, by their name. elsewhere: of CHOICES' packages those that have it. compiled: what `auto` takes while
    torch.compile traces, empty for as ever; `reference` where a compiler that sees into the kernel fuses it with what is beside
    it, which an opaque operator keeps it from: compiled blocks were measured 6 % faster with torch's own norms and 4 % slower
    with a faster opaque one (BioNeMo #94), and one norm fell from 4685 to 1815 GB/s (quack #77)."""

    name: str
    gpu: tuple[str, ...] = ("triton",)
    serves: dict[str, Serves] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    compiled: str = ""

    @property
    def has(self) -> tuple[str, ...]:
        """All implementations."""
        return ("reference", *self.gpu, *(name for name in ("triton", "cuda") if name in self.serves), *self.elsewhere)

    def choose(self, wanted: str, x: torch.Tensor) -> str:
        """The implementation for x under the recipe's `wanted`, one of CHOICES."""
        if wanted == "reference":
            return "reference"
        for name in self._order(wanted, x):
            why = self._refuses(name, x)
            if why is None:
                return name
            if name == wanted:
                _say(self.name, name, why)
        return "reference"

    def _order(self, wanted: str, x: torch.Tensor) -> tuple[str, ...]:
        """What to try. On CPU nothing but what was named runs otherwise than by the reference."""
        named = (wanted,) if wanted != "auto" and wanted in self.has else ()
        if not x.is_cuda:
            return (*named, "triton") if wanted == "cuda" else named
        if wanted not in ("triton", "cuda") and self.compiled and torch.compiler.is_compiling():
            return (*named, self.compiled)
        return (*named, *self.gpu)

    def _refuses(self, name: str, x: torch.Tensor) -> str | None:
        if name == "cuda":
            why = _no_cuda_build(self.name, x.device)
            if why:
                return why
        return self.serves.get(name, serves_all)(x.device, x.dtype, tuple(x.shape))


def _no_cuda_build(name: str, device: torch.device) -> str | None:
    """Why a kernel's C++ cannot run on a device."""
    from pathlib import Path

    from models.kernels.runtime.cuda import BuildError, architecture_of, library

    if device.type != "cuda":
        return "it runs on GPUs alone"
    try:
        library(Path(__file__).parent / name / "kernel.cu", architecture_of(device))
    except BuildError as error:
        return str(error)
    return None


@lru_cache
def _say(kernel: str, wanted: str, why: str) -> None:
    """Once a process and reason."""
    warnings.warn(f"kernels={wanted}: {kernel} is computed otherwise: {why}", stacklevel=4)
