"""Threads of kernels for processors: the same bits from any number of them, nothing done twice, and torch's own team."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.formats.quantize import Draw
from models.kernels.hadamard import random_signs, rotate
from models.kernels.mx_quantize import dequantize, quantize
from tests.models.kernels.cuda_executed import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

HEADER = Path(__file__).resolve().parents[3] / "models" / "kernels" / "runtime" / "host.h"
ROWS, COLUMNS = 416, 1056  # enough for many threads of a team, cut unevenly

X = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))


def stored(format: str, dim: int, **options: object) -> list[Tensor]:
    found = quantize(X, format, dim, kernels="cpp", **options)  # type: ignore[arg-type]
    back = dequantize(found, torch.float32, kernels="cpp")
    return [found.elements, found.scales, back]


WORK: dict[str, Callable[[int], list[Tensor]]] = {
    "mxfp6": lambda dim: stored("mxfp6_e3m2", dim),
    "mxfp4, at random": lambda dim: stored("mxfp4_e2m1", dim, rounding="stochastic", draw=Draw(7)),
    "nvfp4": lambda dim: stored("nvfp4", dim),
    "squares": lambda dim: stored("mxfp8_e4m3", dim, square=True),
    "rotation": lambda dim: [rotate(X, dim, 32, random_signs(1, 32), "cpp").contiguous()],
}


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("name", WORK)
def test_any_number_of_threads_gives_the_same_bits(name: str, dim: int) -> None:
    torch.set_num_threads(1)
    expected = WORK[name](dim)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for ours, theirs in zip(WORK[name](dim), expected, strict=True):
            assert torch.equal(ours, theirs), threads


def test_a_call_starts_no_threads_that_torch_has_not() -> None:
    torch.set_num_threads(3)
    torch.randn(1 << 20).exp_()  # torch's team is there now
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.update(os.listdir("/proc/self/task"))

    watcher = threading.Thread(target=look)
    watcher.start()
    before = set(os.listdir("/proc/self/task"))
    for _ in range(100):
        stored("mxfp6_e3m2", 0)
    done.set()
    watcher.join()
    assert seen and seen <= before


PROGRAM = """
#include <atomic>
#include <cstdio>
#include <set>
#include <mutex>
#include "HEADER"
int main() {
  for (long count : {1l, 2l, 5l, 64l, 1000l})
    for (int threads : {1, 2, 5, 16}) {
      std::vector<std::atomic<int>> done(count);
      std::set<std::thread::id> who;
      std::mutex lock;
      shared(count, 1l << 30, threads, [&](long first, long last) {
        for (long i = first; i < last; ++i) ++done[i];
        std::lock_guard<std::mutex> held(lock);
        who.insert(std::this_thread::get_id());
      });
      for (long i = 0; i < count; ++i)
        if (done[i] != 1) return std::printf("%ld of %ld by %d threads: %d times\\n", i, count, threads, int(done[i])), 1;
      if (count == 1000 && threads == 5) std::printf("%s, by %zu\\n", GOMP_parallel ? "a team" : "started", who.size());
    }
}
"""


@pytest.mark.parametrize(
    ("options", "limit", "told"),
    [([], "", "started, by 5"), (["-fopenmp"], "", "a team, by 5"), (["-fopenmp"], "2", "a team, by 2")],
    ids=["without a runtime", "with one", "with one that gives fewer"],
)
def test_all_is_done_once(tmp_path: Path, options: list[str], limit: str, told: str) -> None:
    source, program = tmp_path / "shared.cpp", tmp_path / "shared"
    source.write_text(PROGRAM.replace("HEADER", str(HEADER)) + "// " + " ".join(options))
    needed = ["-Wl,--no-as-needed"] if options else []
    command = [str(COMPILER), "-std=c++17", "-O1", "-pthread", *needed, *options, "-o", str(program), str(source)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode and options and "omp" in made.stderr:
        pytest.skip("no OpenMP runtime to link")
    assert made.returncode == 0, made.stderr
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    ran = subprocess.run(
        [str(program)], capture_output=True, text=True, env=environment | ({"OMP_THREAD_LIMIT": limit} if limit else {})
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, told)
