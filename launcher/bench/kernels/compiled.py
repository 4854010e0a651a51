"""What compilers say of every kernel for GPUs that need not be there: registers, stack, spills, the widest access."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import models.kernels
from launcher.terminal import new_table, open_console
from models.kernels.catalogue import CUDA, compilations
from models.kernels.runtime.compiling import ARCHITECTURES, compile_for
from models.kernels.runtime.cuda import BuildError, generate_code, nvcc


def compiled_figures(names: list[str]) -> dict[str, Any]:
    """Of each kernel, case and architecture; CUDA C++ where nvcc is."""
    rows: list[dict[str, Any]] = []
    for name in names:
        for case in compilations(name):
            for architecture in ARCHITECTURES:
                found = compile_for(case, architecture)
                rows.append({"kernel": name, "case": case.name, "architecture": architecture, **vars(found)})
        if name in CUDA and nvcc():
            rows += [row for architecture in ARCHITECTURES for row in _of_nvcc(name, architecture)]
    return {"nvcc": bool(nvcc()), "compiled": rows}


def _of_nvcc(name: str, architecture: str) -> list[dict[str, Any]]:
    source = Path(models.kernels.__file__).parent / name / "kernel.cu"
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "kernel.cubin"
        command = [str(nvcc()), "-O3", "-std=c++17", "-cubin", "-Xptxas", "-v", generate_code(architecture)]
        ran = subprocess.run([*command, "-o", target, source], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise BuildError(f"{source}: nvcc failed for {architecture}:\n{ran.stderr[-2000:]}")
    pattern = (
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    )
    functions = re.findall(pattern, ran.stderr, re.DOTALL)
    readables = _demangled([function for function, *_ in functions])
    return [
        {
            "kernel": name,
            "case": f"kernel.cu {readable}",
            "architecture": architecture,
            "registers": int(registers),
            "stack": int(stack),
            "local": int(spilled),
            "widest": None,  # nvcc writes no PTX here
        }
        for readable, (_, stack, spilled, registers) in zip(readables, functions, strict=True)
    ]


def _demangled(names: list[str]) -> list[str]:
    """C++ names as people write them, without parameters; as they are where c++filt is not."""
    if not names or not (tool := shutil.which("c++filt")):
        return names
    told = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()
    plain = (name.replace("(anonymous namespace)::", "").removeprefix("void ") for name in told)
    return [re.sub(r"\((bool|int)\)", "", name).split("(")[0] for name in plain]


def show_compiled(figures: dict[str, Any], console: Console | None = None) -> None:
    """A row for each kernel and its constants, a column for each architecture."""
    console = console or open_console()
    architectures = list(ARCHITECTURES)
    table = new_table("Registers of a thread / stack / spilled bytes / widest access", "kernel", *architectures)
    cases: dict[tuple[str, str], dict[str, Text]] = {}
    for row in figures["compiled"]:
        widest = "" if row["widest"] is None else f" / {row['widest']}"
        told = f"{row['registers']} / {row['stack']} / {row['local']}{widest}"
        spills = row["stack"] or row["local"]
        cases.setdefault((row["kernel"], row["case"]), {})[row["architecture"]] = Text(told, "red" if spills else "")
    for (kernel, case), found in cases.items():
        table.add_row(f"{kernel}: {case}", *(found.get(architecture, Text()) for architecture in architectures))
    console.print(table)
    if not figures["nvcc"]:
        console.print("CUDA C++ is left out: nvcc was not found")
