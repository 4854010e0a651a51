"""Which implementation of a kernel runs: chosen by the recipe's `kernels=`, the device, the dtype and the shape.

`reference` is plain torch, whose gradients autograd or a compiler sees through. The others are opaque: `triton` (on CPU
interpreted, to be looked at, not to be waited for), `cuda` and `cpp` (C++ for GPUs and for processors, where a kernel has it).
`auto` takes the first of a kernel's own list for the device that serves the case, the reference where there is none. `liger`
and `apex` take those packages' kernel where they have one, else what auto takes.
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
    """A kernel's implementations. gpu, cpu: those that `auto` tries there, in order; `reference` comes last by itself. serves:
    limits of single ones, by their name. elsewhere: of CHOICES' packages those that have it. compiled: what `auto` takes while
    torch.compile traces, empty for as ever; `reference` where a compiler that sees into the kernel fuses it with what is beside
    it, which an opaque operator keeps it from: compiled blocks were measured 6 % faster with torch's own norms and 4 % slower
    with a faster opaque one (BioNeMo #94), and one norm fell from 4685 to 1815 GB/s (quack #77)."""

    name: str
    gpu: tuple[str, ...] = ("triton",)
    cpu: tuple[str, ...] = ()
    serves: dict[str, Serves] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    compiled: str = ""

    @property
    def has(self) -> tuple[str, ...]:
        """All implementations."""
        served = (name for name in ("triton", "cuda") if name in self.serves)
        return ("reference", *self.gpu, *self.cpu, *served, *self.elsewhere)

    def choose(self, wanted: str, x: torch.Tensor) -> str:
        """The implementation for x under the recipe's `wanted`, one of CHOICES."""
        if wanted == "reference":
            return "reference"
        for name in self._order(wanted, x):
            why = self._refuses(name, x)
            if why is None:
                return name
            if name in (wanted, "cpp"):
                _say(self.name, wanted, why)
        return "reference"

    def _order(self, wanted: str, x: torch.Tensor) -> tuple[str, ...]:
        """What to try."""
        named = (wanted,) if wanted in self.has and wanted != "cpp" else ()
        if not x.is_cuda:
            if wanted in ("triton", "cuda"):
                return (*named, "triton") if wanted == "cuda" else named
            return (*named, *self.cpu) if _lies_in_memory(x) else named
        if wanted not in ("triton", "cuda") and self.compiled and torch.compiler.is_compiling():
            return (*named, self.compiled)
        return (*named, *self.gpu)

    def _refuses(self, name: str, x: torch.Tensor) -> str | None:
        why = _no_build(self.name, name, x.device) if name in ("cuda", "cpp") else None
        if why:
            return why
        return self.serves.get(name, serves_all)(x.device, x.dtype, tuple(x.shape))


def _lies_in_memory(x: torch.Tensor) -> bool:
    """Whether C++ may read x: not where a compiler traces, which fuses the reference, nor of a type that only stands for
    numbers."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu" and not torch.compiler.is_compiling()
    )


def _no_build(kernel: str, name: str, device: torch.device) -> str | None:
    """Why a kernel's C++ cannot run on a device."""
    from pathlib import Path

    from models.kernels.runtime import cpp, cuda
    from models.kernels.runtime.building import BuildError

    folder = Path(__file__).parent / kernel
    if name == "cuda" and device.type != "cuda":
        return "it runs on GPUs alone"
    try:
        if name == "cuda":
            cuda.library(folder / "kernel.cu", cuda.architecture_of(device))
        else:
            cpp.library(folder / "kernel.cpp")
    except BuildError as error:
        return str(error)
    return None


@lru_cache
def _say(kernel: str, wanted: str, why: str) -> None:
    """Once a process and reason."""
    warnings.warn(f"kernels={wanted}: {kernel} is computed otherwise: {why}", stacklevel=4)
