"""Which implementation of norms, activations and rotary positions runs, and how other packages' kernels are called."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models.errors import ModelError
from models.kernels import elsewhere, registry
from models.kernels.gated import KERNELS as GATED
from models.kernels.gated import gated
from models.kernels.layer_norm import KERNEL as LAYER_NORM
from models.kernels.layer_norm import layer_norm
from models.kernels.mx_quantize import KERNEL as MX
from models.kernels.mx_quantize import quantize
from models.kernels.poly_norm import KERNEL as POLY_NORM
from models.kernels.poly_norm import poly_norm
from models.kernels.registry import Kernel, serves_all
from models.kernels.rms_norm import KERNEL as RMS_NORM
from models.kernels.rms_norm import rms_norm
from models.kernels.rotary import KERNEL as ROTARY
from models.kernels.runtime import cpp
from models.kernels.squared_relu import KERNEL as SQUARED_RELU
from models.kernels.squared_relu import squared_relu
from tests.models.kernels.harness import noise

EVERY = [RMS_NORM, LAYER_NORM, *GATED.values(), SQUARED_RELU, POLY_NORM, ROTARY]


def on(device: str, *shape: int) -> Any:
    """What a choice looks at of a tensor, on a device that need not be there."""
    return SimpleNamespace(
        is_cuda=device == "cuda", device=torch.device(device), dtype=torch.bfloat16, shape=torch.Size(shape)
    )


def test_auto_is_the_reference_on_cpu_and_triton_on_a_gpu() -> None:
    for kernel in EVERY:
        assert kernel.choose("auto", on("cpu", 8, 64)) == "reference"
        assert kernel.choose("triton", on("cpu", 8, 64)) == "triton"
        assert kernel.choose("auto", on("cuda", 8, 64)) == "triton"
        assert kernel.choose("reference", on("cuda", 8, 64)) == "reference"


def test_a_compiler_sees_through_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for kernel in EVERY:
        assert kernel.choose("auto", on("cuda", 8, 64)) == "reference"
        assert kernel.choose("triton", on("cuda", 8, 64)) == "triton"
    assert Kernel("opaque").choose("auto", on("cuda", 8, 64)) == "triton"


def test_auto_is_cpp_on_a_processor_where_a_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        MX.choose("auto", noise(2, 32)) == MX.choose("cpp", noise(2, 32)) == MX.choose("liger", noise(2, 32)) == "cpp"
    )
    assert MX.choose("reference", noise(2, 32)) == "reference"
    assert MX.choose("triton", noise(2, 32)) == MX.choose("cuda", noise(2, 32)) == "triton"
    assert MX.choose("cpp", on("cuda", 2, 32)) == "triton" and RMS_NORM.choose("cpp", noise(2, 32)) == "reference"
    with FakeTensorMode():
        assert MX.choose("auto", torch.empty(2, 32)) == "reference"
    assert MX.choose("auto", torch.empty(2, 32, device="meta")) == "reference"
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert MX.choose("auto", noise(2, 32)) == MX.choose("cpp", noise(2, 32)) == "reference"


@pytest.mark.parametrize(
    ("compiler", "why"),
    [("false", "false does not run"), ("no-such-compiler", "does not run"), (None, "no C\\+\\+ compiler")],
)
def test_without_a_compiler_it_is_told_once_and_computed_otherwise(
    compiler: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    else:
        monkeypatch.setattr("shutil.which", lambda name: None)
    cpp._attempt.cache_clear()
    registry._say.cache_clear()
    try:
        with pytest.warns(UserWarning, match=f"kernels=auto: mx_quantize is computed otherwise: .*{why}") as told:
            found = [quantize(noise(2, 32), "mxint8"), quantize(noise(2, 32), "mxint8")]
        assert len(told) == 1
    finally:
        cpp._attempt.cache_clear()
        registry._say.cache_clear()
    assert torch.equal(found[0].elements, quantize(noise(2, 32), "mxint8", kernels="reference").elements)


def test_packages_are_taken_for_what_they_have() -> None:
    for kernel, liger, apex in (
        (RMS_NORM, "liger", "apex"),
        (LAYER_NORM, "liger", "apex"),
        (GATED["silu"], "liger", "triton"),
        (GATED["gelu"], "triton", "triton"),
        (GATED["gelu_tanh"], "liger", "triton"),
        (SQUARED_RELU, "liger", "triton"),
        (POLY_NORM, "liger", "triton"),
        (ROTARY, "triton", "triton"),
    ):
        assert (kernel.choose("liger", on("cuda", 8, 64)), kernel.choose("apex", on("cuda", 8, 64))) == (liger, apex)


def test_packages_that_run_on_gpus_leave_the_cpu_to_the_reference() -> None:
    with pytest.warns(UserWarning, match="kernels=apex: layer_norm is computed otherwise: it runs on GPUs alone"):
        assert LAYER_NORM.choose("apex", on("cpu", 8, 64)) == "reference"
    assert ROTARY.choose("liger", on("cpu", 8, 64)) == "reference"


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    x, weight = noise(2, 8), noise(8)
    for package, module in (("liger", "liger_kernel"), ("apex", "apex")):
        with pytest.raises(ModelError, match=f"kernels={package}: {module} is not installed; install it or choose"):
            elsewhere.rms_norm(package, x, weight, 1e-5)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Packages that write down what they are called with, and run on CPU."""
    calls: list[tuple] = []

    def function(name: str) -> Any:
        def apply(*arguments: Any) -> Tensor:
            calls.append((name, *arguments))
            return arguments[0]

        return apply

    def module(name: str, **contents: Any) -> ModuleType:
        found = ModuleType(name)
        found.__spec__, found.__path__ = ModuleSpec(name, None), []
        vars(found).update(contents)
        monkeypatch.setitem(sys.modules, name, found)
        return found

    names = ("RMSNorm", "LayerNorm", "SiLUMul", "GELUMul", "ReLUSquared", "PolyNorm")
    functions = {f"Liger{name}Function": SimpleNamespace(apply=function(name)) for name in names}
    module("liger_kernel", ops=module("liger_kernel.ops", **functions))
    norms = {name: function(name) for name in ("fused_rms_norm_affine", "fused_layer_norm_affine")}
    module("apex", normalization=module("apex.normalization", fused_layer_norm=SimpleNamespace(**norms)))
    for kernel in (RMS_NORM, LAYER_NORM, GATED["silu"], SQUARED_RELU, POLY_NORM):
        for package in kernel.elsewhere:
            monkeypatch.setitem(kernel.serves, package, serves_all)
    return calls


def test_liger_is_called_with_its_arguments(told: list[tuple]) -> None:
    x, weight, bias, powers, one = noise(2, 8), noise(8), noise(8, seed=1), noise(3), noise(1)
    rms_norm(x, weight, 1e-5, "liger")
    layer_norm(x, weight, bias, 1e-5, "liger")
    layer_norm(x, weight, None, 1e-5, "liger")
    gated(x, "silu", "liger")
    gated(x, "gelu_tanh", "liger")
    squared_relu(x, "liger")
    poly_norm(x, powers, one, 1e-6, "liger")
    gate, up = x.chunk(2, -1)
    expected = [
        ("RMSNorm", x, weight, 1e-5, 0.0, "gemma", False),
        ("LayerNorm", x, weight, bias, 1e-5),
        ("LayerNorm", x, weight, torch.zeros(8), 1e-5),
        ("SiLUMul", gate, up),
        ("GELUMul", gate, up),
        ("ReLUSquared", x),
        ("PolyNorm", x, powers.flip(0), one, 1e-6, False),
    ]
    same_calls(told, expected)


def test_apex_is_called_with_its_arguments(told: list[tuple]) -> None:
    x, weight, bias = noise(2, 8), noise(8), noise(8, seed=1)
    rms_norm(x, weight, 1e-5, "apex")
    layer_norm(x, weight, bias, 1e-5, "apex")
    expected = [
        ("fused_rms_norm_affine", x, weight, (8,), 1e-5),
        ("fused_layer_norm_affine", x, weight, bias, (8,), 1e-5),
    ]
    same_calls(told, expected)


def same_calls(calls: list[tuple], expected: list[tuple]) -> None:
    assert len(calls) == len(expected)
    for call, right in zip(calls, expected, strict=True):
        assert len(call) == len(right)
        for ours, theirs in zip(call, right, strict=True):
            assert torch.equal(ours, theirs) if isinstance(theirs, Tensor) else ours == theirs
