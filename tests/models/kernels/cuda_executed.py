"""CUDA C++ kernels executed without a GPU: `.cu` files as a C++ compiler builds them against `cuda_on_cpu`.

What they compute, where they read and write and what they need of barriers and shuffles is seen here; what nvcc and a GPU make
of them is not.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

SHIM = Path(__file__).parent / "cuda_on_cpu"
COMPILER = os.environ.get("CXX") or shutil.which("g++")


def executed(source: Path, directory: Path) -> ctypes.CDLL:
    """The library of a `.cu` file, built in a directory. Misaligned accesses and shifts past a word's end are traps."""
    text, launches = re.subn(r"(\w+)<<<(.*?)>>>\(", r"on_cpu::launch(\1, \2)(", source.read_text(), flags=re.DOTALL)
    assert launches, f"{source} launches nothing"
    translated, library = (directory / f"{source.parent.name}.{suffix}" for suffix in ("cpp", "so"))
    translated.write_text(text)
    checks = ["-fsanitize=alignment,shift-exponent", "-fsanitize-undefined-trap-on-error"]
    options = ["-O1", "-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-shared", "-fPIC", "-w", *checks]
    places = [f"-I{SHIM}", f"-I{source.parent}", "-include", "cuda_runtime.h"]
    subprocess.run([str(COMPILER), *options, *places, "-o", str(library), str(translated)], check=True)
    return ctypes.CDLL(str(library))
