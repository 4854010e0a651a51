"""`kernels="cuda"` in tests on machines without a GPU: CUDA C++ executed on the processor."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import models.kernels.adamw.cuda as adamw
import models.kernels.mx_quantize.cuda as mx_quantize
from models.kernels.registry import Kernel
from tests.models.kernels.cuda_executed import COMPILER, executed


@pytest.fixture(scope="session")
def executed_cuda(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], ctypes.CDLL]:
    """The library of a `.cu` file, built once."""
    directory, found = tmp_path_factory.mktemp("cuda"), dict[Path, ctypes.CDLL]()

    def library(source: Path) -> ctypes.CDLL:
        if source not in found:
            found[source] = executed(source, directory)
        return found[source]

    return library


@pytest.fixture(autouse=True)
def cuda_without_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of `kernels="cuda"` that is not marked `gpu` has it on the processor."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("kernels") != "cuda" or request.node.get_closest_marker("gpu"):
        return
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    library = request.getfixturevalue("executed_cuda")
    for module in (adamw, mx_quantize):
        monkeypatch.setattr(module, "library", lambda source, architecture: library(source))
        monkeypatch.setattr(module, "architecture_of", lambda device: "processor")
        monkeypatch.setattr(module, "stream", lambda device: ctypes.c_void_p(None))
    choose = Kernel.choose

    def chosen(kernel: Kernel, kernels: str, *arguments: Any) -> str:
        return "cuda" if kernels == "cuda" else choose(kernel, kernels, *arguments)

    assert torch.device("cpu") == torch.empty(0).device, "tensors of these tests are the processor's"
    monkeypatch.setattr(Kernel, "choose", chosen)
