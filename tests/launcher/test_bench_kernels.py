"""The bench of kernels: every kernel is known to it, every figure is there; nothing here asserts a speed."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

from launcher.bench.kernels import command, compiled
from launcher.bench.kernels.families import known, maker
from launcher.bench.kernels.picture import picture
from launcher.bench.kernels.record import COMPILED, EAGER, HOST_CPP, LIGER, TRITON, Pass, Place, Sizes, place_of
from launcher.bench.kernels.show import show
from launcher.bench.kernels.timing import peak_memory, seconds_of
from launcher.config import RecipeError
from models.kernels.catalogue import KERNELS
from models.kernels.runtime.compiling import Resources

CPU = Place(torch.device("cpu"), torch.float32, (EAGER, COMPILED))
MINUTE = Sizes("minute", 32, 128, 64, 96, 1000)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_has_passes_that_run(name: str) -> None:
    """All but what would be compiled, at minute sizes."""
    torch.manual_seed(0)
    for one in maker(name)(MINUTE, CPU):
        assert set(one.calls) == {EAGER, COMPILED} and not one.inside
        assert (one.flops > 0) != (one.moved > 0)
        for _ in range(2):
            one.calls[EAGER]()


def test_kernels_run_interpreted_where_the_bench_would_run_them() -> None:
    """The paths of a GPU, on CPU: the kernel itself, and within a block."""
    place = Place(torch.device("cpu"), torch.float32, (EAGER, COMPILED, TRITON))
    (forward, backward, *_) = maker("rms_norm")(MINUTE, place)
    assert set(forward.calls) == {EAGER, COMPILED, TRITON} and set(forward.inside) == {EAGER, TRITON}
    torch.testing.assert_close(forward.calls[TRITON](), forward.calls[EAGER]())
    assert backward.calls[TRITON]()
    step, narrow = maker("adamw")(MINUTE, place)
    step.calls[TRITON]()
    assert set(narrow.calls) == {TRITON}
    narrow.calls[TRITON]()


def test_command_writes_table_picture_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, image = tmp_path / "figures.json", tmp_path / "kernels.png"
    threads = torch.get_num_threads()
    try:
        arguments = ["--kernels", "rms_norm", "--device", "cpu", "--rounds", "1"]
        assert command.main([*arguments, "--json", str(file), "--picture", str(image)]) == 0
    finally:
        torch.set_num_threads(threads)
    figures = json.loads(file.read_text())
    assert figures["copy_rate"] > 0 and figures["product_rate"] > 0
    assert [one["pass"] for one in figures["kernels"]][:2] == ["forward", "backward"]
    for one in figures["kernels"]:
        assert set(one["seconds"]) == set(one["shares"]) == {EAGER, COMPILED}
        assert min(one["seconds"].values()) > 0
        assert one["shares"][EAGER] == pytest.approx(one["least_seconds"] / one["seconds"][EAGER])
    assert image.read_bytes()[1:4] == b"PNG"
    told = capsys.readouterr().out
    assert "copies" in told and "rms_norm" in told and "≥ 95%" in told


def gpu_figures() -> dict:
    """As a GPU would give them."""
    one = {
        "kernel": "rms_norm", "pass": "forward", "sizes": "large", "least_seconds": 6e-5, "by": "copies", "goal": 0.95,
        "seconds": {TRITON: 6.1e-5, EAGER: 1.2e-4, COMPILED: 8e-5, LIGER: 7e-5}, "inside": {EAGER: 1e-4, TRITON: 8e-5},
        "shares": {TRITON: 0.98, EAGER: 0.5, COMPILED: 0.75, LIGER: 0.86}, "memory": {TRITON: 1 << 27},
    }  # fmt: skip
    missed = one | {"pass": "backward", "shares": {TRITON: 0.5}, "seconds": {TRITON: 1e-4}, "memory": {TRITON: None}}
    machine = {"cpu": "c", "cores": 16}
    return {
        "device": "NVIDIA H200", "dtype": "bfloat16", "threads": 16, "environment": {"machine": machine}, "rounds": 9,
        "load_before": 0.0, "copy_rate": 4.3e12, "product_rate": 7.9e14, "kernels": [one, missed], "date": "2026-11-21",
    }  # fmt: skip


def test_goals_reached_and_missed_are_told() -> None:
    console = Console(record=True, width=200)
    show(gpu_figures(), console)
    told = console.export_text()
    assert "98% (61 µs)" in told and "triton 1.25×" in told and "134 MB" in told and "≥ 95% missed" in told
    assert "4,300 GB/s" in told and "790.00 TFLOP/s" in told
    assert picture(gpu_figures())[1:4] == b"PNG"


def test_turns_are_taken_by_all() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = seconds_of(calls, CPU, rounds=2)
    assert set(seconds) == {"a", "b"}
    assert "".join(dict.fromkeys("".join(order[10:30]))) == "ab" and order[-1] == "a", "each round another begins"
    assert peak_memory(calls["a"], CPU) is None


def test_another_implementation_than_the_one_named_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        warnings.warn("kernels=cuda: adamw is computed otherwise: nvcc failed", stacklevel=1)

    rates = {"copy_rate": 1.0, "product_rate": 1.0}
    with pytest.raises(RecipeError, match="nvcc failed"):
        command._figures("adamw", Pass("step", {"cuda": refuse}, 1.0), CPU, 1, rates)


def test_places() -> None:
    assert place_of(torch.device("cpu")).ways == (EAGER, COMPILED, HOST_CPP)
    on_gpu = place_of(torch.device("cuda"))
    assert on_gpu.dtype == torch.bfloat16 and TRITON in on_gpu.ways
    assert known() == list(KERNELS)


def test_what_compilers_say_is_a_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiled, "compile_for", lambda case, architecture: Resources(40, 0, 0, 16))
    monkeypatch.setattr(compiled, "nvcc", lambda: None)
    assert command.main(["--compile-only", "--kernels", "rms_norm"]) == 0
    told = capsys.readouterr().out
    assert "sm_90a" in told and "40 / 0 / 0 / 16" in told and "nvcc was not found" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--kernels", "nothing"], "--kernels=nothing"), (["--sizes", "huge"], "huge"), (["--rounds", "-1"], "rounds=-1")],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        command.main([*arguments, "--device", "cpu"])
