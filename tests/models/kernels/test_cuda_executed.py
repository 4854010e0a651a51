"""The harness that executes CUDA C++ on the processor sees what would be wrong on a GPU."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.kernels.runtime.building import pointer
from tests.models.kernels.cuda_executed import COMPILER, executed

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

KERNEL = """
__global__ void work(const int* x, int* y) {{
  __shared__ int line[128];
  {body}
}}

extern "C" int call(const int* x, int* y) {{
  work<<<2, 128, 0, nullptr>>>(x, y);
  return cudaGetLastError();
}}
"""


def run(directory: Path, body: str) -> tuple[int, Tensor]:
    """(error, y) of two blocks of 128 threads."""
    source = directory / "kernel.cu"
    source.write_text(KERNEL.format(body=body))
    x, y = torch.arange(256, dtype=torch.int32) ** 2 % 251, torch.full((256,), -1, dtype=torch.int32)
    code = executed(source, directory).call(pointer(x), pointer(y), ctypes.c_void_p(None))
    return code, y


X = torch.arange(256, dtype=torch.int32) ** 2 % 251
TURNED = (
    "int at = blockIdx.x * 128 + threadIdx.x; line[threadIdx.x] = x[at]; {barrier} y[at] = line[127 - threadIdx.x];"
)


def test_threads_of_a_block_share_memory_and_wait(tmp_path: Path) -> None:
    code, y = run(tmp_path, TURNED.format(barrier="__syncthreads();"))
    assert code == 0 and torch.equal(y.view(2, 128), X.view(2, 128).flip(1))


def test_a_barrier_that_is_missing_is_seen(tmp_path: Path) -> None:
    code, y = run(tmp_path, TURNED.format(barrier=""))
    wrong = (y.view(2, 128) != X.view(2, 128).flip(1)).any(1)
    assert code == 0 and bool(wrong.all()), "in blocks of either order"


def test_a_barrier_that_some_never_reach_is_an_error(tmp_path: Path) -> None:
    code, _ = run(tmp_path, "if (threadIdx.x != 77) __syncthreads();")
    assert code == 1


def test_shuffles_stay_within_a_warp(tmp_path: Path) -> None:
    at = "int at = blockIdx.x * 128 + threadIdx.x;"
    code, y = run(tmp_path, f"{at} y[at] = __shfl_xor_sync(~0u, x[at], 5) - 3 * __shfl_down_sync(~0u, x[at], 30);")
    lanes, warps = torch.arange(32), X.view(-1, 32)
    down = torch.where(lanes + 30 < 32, (lanes + 30) % 32, lanes)
    assert code == 0 and torch.equal(y.view(-1, 32), warps[:, lanes ^ 5] - 3 * warps[:, down])


def test_atomics_of_all_threads_count(tmp_path: Path) -> None:
    body = "if (threadIdx.x == 0) line[0] = 0; __syncthreads(); atomicMax(line, x[blockIdx.x * 128 + threadIdx.x]);"
    code, y = run(tmp_path, f"{body} __syncthreads(); y[blockIdx.x] = line[0];")
    assert code == 0 and torch.equal(y[:2], X.view(2, 128).amax(1))
