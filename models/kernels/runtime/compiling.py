"""Kernels compiled for GPUs that need not be there, and what the compiler says of them: registers, stack, spills.

The Triton wheel carries the assembler and `cuobjdump`, so this runs on any machine; CUDA C++ needs nvcc.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = {"sm_80": 80, "sm_90a": 90, "sm_100a": 100}
"""A100, H100 and H200, B200; by the compute capability that Triton is told."""


@dataclass(frozen=True)
class Compilation:
    """A kernel with the types and constants that it is compiled for.

    signature: argument name to Triton type, `*bf16`, `i32`, `fp32`; what is in `constants` is left out. Pointers, and the
    integers named in `aligned`, are told to be multiples of 16.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    warps: int = 4
    aligned: tuple[str, ...] = field(default=())

    @property
    def name(self) -> str:
        """The kernel and its constants."""
        told = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return f"{self.kernel.fn.__name__.strip('_')}({told})"


@dataclass(frozen=True)
class Resources:
    """Of one thread. registers: count; stack, local: bytes, where spilled registers go. widest: bytes of the widest load or
    store from global memory."""

    registers: int
    stack: int
    local: int
    widest: int


def compile_for(case: Compilation, architecture: str) -> Resources:
    """Compile a Triton kernel for a GPU architecture of `ARCHITECTURES`, which no machine needs to have."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr" if name in case.constants else case.signature[name] for name in case.kernel.arg_names
    }
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(case.kernel.arg_names)
        if signature[name].startswith("*") or name in case.aligned
    }
    source = ASTSource(case.kernel, signature, case.constants, attributes)
    target = GPUTarget("cuda", ARCHITECTURES[architecture], 32)
    compiled = triton.compile(source, target=target, options={"num_warps": case.warps})
    return _resources(compiled.asm["cubin"], compiled.asm["ptx"])


def _resources(cubin: bytes, ptx: str) -> Resources:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", told)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return Resources(registers, stack, local, _widest(ptx))


def _widest(ptx: str) -> int:
    accesses = re.findall(r"(?:ld|st)\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b", ptx)
    copies = re.findall(
        r"cp\.async\.c[ag]\S*\s+\[[^\]]*\],\s*\[[^\]]*\],\s*(\w+)", ptx
    )  # to shared memory, ahead of their use
    found = [int(count or 1) * int(bits) // 8 for count, bits in accesses]
    return max([*found, *(int(size, 0) for size in copies)], default=0)
