"""Every kernel compiles for the GPUs that are not here, and spills no register."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import models.kernels
from models.kernels.catalogue import CUDA, KERNELS, compilations
from models.kernels.runtime.compiling import ARCHITECTURES, compile_for
from models.kernels.runtime.cuda import generate_code, nvcc


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", KERNELS)
def test_triton_kernels_compile_without_spills(name, architecture):
    for case in compilations(name):
        found = compile_for(case, architecture)
        print(f"{architecture} {case.name}: {found}")
        assert not found.stack and not found.local, case.name
        assert found.widest >= 8, f"{case.name}: no access is vectorised"


@pytest.mark.skipif(nvcc() is None, reason="nvcc is not installed")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", CUDA)
def test_cuda_kernels_compile_without_spills(name, architecture, tmp_path):
    source = Path(models.kernels.__file__).parent / name / "kernel.cu"
    command = [nvcc(), "-O3", "-std=c++17", "-cubin", "-Xptxas", "-v,-warn-spills", generate_code(architecture)]
    told = subprocess.run(
        [*command, "-o", tmp_path / "x.cubin", source], capture_output=True, text=True, check=True
    ).stderr
    print(told)
    assert "bytes stack frame" in told
    for line in told.splitlines():
        if "bytes stack frame" in line:
            assert line.split()[0] == "0" and " 0 bytes spill stores, 0 bytes spill loads" in line, line
