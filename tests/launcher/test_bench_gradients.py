"""`triaxis bench gradients`: its estimates against numbers that were put in, and its gradients against autograd's."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from launcher.bench.gradients import Arm, Moments, arms_of, main, run
from launcher.config import RecipeError
from launcher.generate import load_model
from models.decoder import Decoder
from models.precision import ProductConfig, ProductsConfig
from models.random import Clock
from parallel.config import ParallelError, PrecisionConfig
from parallel.engines.base import Batch

SIZE, COUNT = 4096, 32


@pytest.fixture
def trained(straight: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    threads = torch.get_num_threads()
    monkeypatch.chdir(straight.parents[1])  # data.path of a run is relative to where it was started
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})  # so small a model waits for its threads
    yield straight
    torch.set_num_threads(threads)


def moments(mean: torch.Tensor, scatter: float, seed: int) -> Moments:
    found, generator = Moments(), torch.Generator().manual_seed(seed)
    for _ in range(COUNT):
        found.add(mean + scatter * torch.randn(SIZE, generator=generator) / math.sqrt(SIZE))
    return found


def test_norms_of_means_are_found_in_noise_larger_than_they() -> None:
    """A mean of norm 0.5 in noise of norm 2, of whose mean of 32 the naive norm would be 0.61."""
    mean = torch.full((SIZE,), 0.5 / math.sqrt(SIZE))
    found = moments(mean, 2.0, 0)
    assert found.mean_square == pytest.approx(0.25, abs=0.03)
    assert found.variance == pytest.approx(4.0, rel=0.02)
    assert found.total is not None and float(found.total.norm()) / COUNT == pytest.approx(0.61, abs=0.02)


def test_of_noise_alone_the_error_is_what_is_told() -> None:
    """Over 60 experiments the estimate is 0 on average, and its deviation is the one that each of them tells."""
    runs = [moments(torch.zeros(SIZE), 1.0, seed) for seed in range(60)]
    scores = torch.tensor([one.mean_square / one.mean_square_error for one in runs])
    assert abs(float(scores.mean())) < 3 / math.sqrt(60)
    assert float(scores.std()) == pytest.approx(1.0, abs=0.3)


def test_a_format_is_told_by_what_was_done_to_the_gradients() -> None:
    """Gradients that are 3 % too short, beside the right direction by a tenth, and noisier by a fifth."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda size: size * torch.randn(SIZE, generator=generator) / math.sqrt(SIZE)  # noqa: E731
    signal, aside = torch.zeros(SIZE), torch.zeros(SIZE)
    signal[0], aside[1] = 1.0, 0.1
    base, arm = Moments(), Arm("short", Decoder.__new__(Decoder), Clock(0))
    for _ in range(COUNT):
        gradient = signal + noise(2.0)
        base.add(gradient)
        arm.compare(0.97 * gradient + aside + noise(math.sqrt(0.2) * 2.0), gradient)
    found = arm.figures(base, tokens=1000)
    assert found["along"] == pytest.approx(-0.03, abs=0.01)
    assert found["bias_told"] and found["bias"] == pytest.approx(math.hypot(0.03, 0.1), rel=0.1)
    assert found["worth"] == pytest.approx(0.97**2 / (0.97**2 + 0.2), rel=0.03)
    assert found["tokens"] == pytest.approx(1000 * 4 / (0.03**2 + 0.1**2), rel=0.25)


def test_a_gradient_is_that_of_the_mean_loss(trained: Path) -> None:
    """Also of rows that micro-batches of the run's size would not divide, and with targets that do not count."""
    loaded, recipe = load_model(trained)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 100, (5, 17), generator=generator)
    weights = (torch.rand(5, 16, generator=generator) < 0.7).float()
    batch = Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), weights, 0)
    assert recipe.train.micro_batch == 2
    found = Arm("fp32", loaded.model.train(), loaded.clock).gradient(batch, recipe)
    losses = F.cross_entropy(loaded.model(batch.inputs).permute(1, 2, 0), batch.targets, reduction="none")
    (losses * weights).sum().div(weights.sum()).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in loaded.model.parameters()])
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_less_exact_formats_err_more_and_float32_not_at_all(trained: Path) -> None:
    forward = lambda name: PrecisionConfig(  # noqa: E731
        products=ProductsConfig(forward=ProductConfig(activation=name, weight=name))
    )
    arms = {
        "fp32": PrecisionConfig(name="fp32"),
        "bf16": PrecisionConfig(name="bf16"),
        "mxfp8": forward("mxfp8_e4m3"),
        "mxfp4": forward("mxfp4_e2m1"),
    }
    figures = run(trained, arms, batches=24, tokens=256)
    fp32, bf16, mxfp8, mxfp4 = figures["figures"]
    assert (fp32["error"], fp32["worth"], fp32["along"], fp32["bias"]) == (0, 1, 0, 0) and fp32["tokens"] == math.inf
    assert 2**-9 < bf16["error"] < mxfp8["error"] < mxfp4["error"] / 4 < 0.25
    assert mxfp4["bias_told"] and mxfp4["bias"] > mxfp8["bias"] and mxfp4["tokens"] < mxfp8["tokens"]
    assert figures["noise_scale"] > 0 and figures["checkpoint"] == "step_000000120"


def test_the_command_tells_it_and_writes_figures(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    options = ["--presets", "bf16,nvfp4", "--batches", "8", "--tokens", "256", "--step", "20", "--json", str(file)]
    assert main([str(trained), *options]) == 0
    shown = capsys.readouterr().out
    assert "nvfp4" in shown and "gradient noise scale" in shown and "step_000000020" in shown
    assert [one["precision"] for one in json.loads(file.read_text())["figures"]] == ["bf16", "nvfp4"]


def test_arms_of_a_sweep_are_its_recipes() -> None:
    arms = arms_of("", "mx_parity")
    assert "fp32" not in arms and len(arms) == 10
    neither = arms["mxfp4_backward_neither"].products.weight_gradient
    assert (neither.hadamard, neither.rounding, neither.gradient) == ("off", "nearest_even", "mxfp4_e2m1")
    assert arms["bf16"].name == "bf16" and arms["mxfp8"].name == "fp32"


def test_what_cannot_be_told_is_refused(trained: Path) -> None:
    bf16 = {"bf16": PrecisionConfig(name="bf16")}
    with pytest.raises(RecipeError, match="--batches=7: .* at least 8"):
        run(trained, bf16, batches=7)
    for tokens in (100, -16):
        with pytest.raises(RecipeError, match=f"--tokens={tokens}: must be a multiple of train.sequence_length=16"):
            run(trained, bf16, batches=8, tokens=tokens)
    with pytest.raises(RecipeError, match=r"--batches=10000 of --tokens=128: .* holds out [\d,]+ tokens"):
        run(trained, bf16, batches=10_000)
    with pytest.raises(RecipeError, match="fp16: precision.name=fp16: .* loss scale"):
        run(trained, {"fp16": PrecisionConfig(name="fp16")}, batches=8)
    with pytest.raises(ParallelError, match="blocks of 32"):  # rows of 16 tokens
        run(trained, arms_of("mxfp8", ""), batches=8)
    with pytest.raises(RecipeError, match="--presets=fp32: nothing in it differs from float32"):
        arms_of("fp32", "")
    with pytest.raises(RecipeError, match="--sweep=tiny: has no axes"):
        arms_of("", "tiny")
