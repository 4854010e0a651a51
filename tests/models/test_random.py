"""Random numbers are a function of (seed, name, global offset): against plain-Python references and by statistics."""

from __future__ import annotations

import itertools
import math
import random
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

import models.random
from models.random import Clock, drop, fill_normal, offsets, stream_key, uniform

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
CPU = torch.device("cpu")


def splitmix64(state: int) -> int:
    """The finaliser of SplitMix64 in Python integers."""
    z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def unsplitmix64(output: int) -> int:
    """The state whose output this is; the finaliser is a bijection."""

    def unshift(x: int, bits: int) -> int:
        result = x
        for _ in range(64 // bits + 1):
            result = x ^ (result >> bits)
        return result

    z = unshift(output, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & MASK
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & MASK
    return unshift(z, 30)


def signed(value: int) -> int:
    """The int64 with the same bits."""
    return value - (1 << 64) if value >> 63 else value


def normal(shape: tuple[int, ...], key: int, dtype: torch.dtype = torch.float64, std: float = 1.0) -> Tensor:
    """A whole tensor of normal numbers."""
    tensor = torch.empty(shape, dtype=dtype)
    fill_normal(tensor, key, shape, (0,) * len(shape), std)
    return tensor


def test_uniform_is_splitmix64() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # seed 0, from the authors' C program
    assert [splitmix64(GAMMA * (i + 1) & MASK) for i in range(3)] == published
    expected = [((value >> 12) + 0.5) * 2.0**-52 for value in published]
    assert uniform(0, torch.arange(3)).tolist() == expected
    key, places = stream_key(7, "name"), [0, 1, 12345, (1 << 40) + 3]
    reference = [((splitmix64((key + GAMMA * (i + 1)) & MASK) >> 12) + 0.5) * 2.0**-52 for i in places]
    assert uniform(key, torch.tensor(places)).tolist() == reference


@pytest.mark.parametrize("bits", [0, MASK])
def test_uniform_never_reaches_its_ends(bits: int) -> None:
    """The extreme outputs, found by running the generator backwards, give finite normal numbers."""
    key = signed((unsplitmix64(bits) - GAMMA) & MASK)
    value = uniform(key, torch.tensor([0])).item()
    assert value == (2.0**-53 if bits == 0 else 1 - 2.0**-53)
    assert normal((1,), key).abs().item() == pytest.approx(-NormalDist().inv_cdf(2.0**-53), rel=1e-9)


def test_normal_numbers_are_the_inverse_distribution_of_the_uniform_ones() -> None:
    key = stream_key(1, "weights", "layers.0.attention.qkv.weight")
    expected = [0.02 * NormalDist().inv_cdf(u) for u in uniform(key, torch.arange(1000)).tolist()]
    torch.testing.assert_close(
        normal((1000,), key, std=0.02), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("chunk", [1 << 20, 64, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1000,), (40, 50), (9, 10, 11)])
def test_any_rectangle_is_that_of_the_whole_bitwise(
    shape: tuple[int, ...], dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = stream_key(3, "weights", "x")
    whole = normal(shape, key, dtype)
    monkeypatch.setattr(models.random, "CHUNK", chunk)
    generator = random.Random(5)
    for _ in range(20):
        bounds = [sorted(generator.sample(range(extent + 1), 2)) for extent in shape]
        window = tuple(slice(low, high) for low, high in bounds)
        part = torch.empty_like(whole[window])
        fill_normal(part, key, shape, tuple(low for low, _ in bounds), 1.0)
        assert torch.equal(part, whole[window])


def test_views_are_written_in_place() -> None:
    key, whole = stream_key(3, "weights", "x"), torch.zeros(8, 8)
    fill_normal(whole[2:5, 1:7:2], key, (3, 3), (0, 0), 1.0)
    assert torch.equal(whole[2:5, 1:7:2], normal((3, 3), key, torch.float32))
    assert (whole != 0).sum() == 9


def test_offsets_are_row_major() -> None:
    whole = torch.arange(4 * 5 * 6).view(4, 5, 6)
    assert torch.equal(offsets((4, 5, 6), (1, 2, 3), (2, 3, 2), CPU), whole[1:3, 2:5, 3:5])


def test_distribution_is_normal() -> None:
    """Moments within 4 standard errors, Kolmogorov-Smirnov distance below its 0.1 % point."""
    count = 1 << 20
    sample = normal((count,), stream_key(0, "weights", "embedding.token.weight"))
    assert abs(sample.mean()) < 4 / math.sqrt(count)
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / count)
    assert abs((sample**3).mean()) < 4 * math.sqrt(15 / count)
    assert abs((sample**4).mean() - 3) < 4 * math.sqrt(96 / count)
    below = 0.5 * (1 + torch.erf(sample.sort().values / math.sqrt(2)))
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum((below - steps[:-1]).abs().max(), (below - steps[1:]).abs().max())
    assert distance < 1.95 / math.sqrt(count)


def test_streams_and_neighbours_are_independent() -> None:
    """Names one character apart, neighbouring seeds, and the same stream shifted by one or by a row."""
    count = 1 << 18
    names = ["layers.0.attention.qkv.weight", "layers.1.attention.qkv.weight", "layers.0.attention.output.weight"]
    streams = [normal((count,), stream_key(seed, "weights", name)) for seed in (0, 1) for name in names]
    streams += [streams[0].roll(1), streams[0].roll(512)]
    for a, b in itertools.combinations(streams, 2):
        assert abs((a * b).mean()) < 4.5 / math.sqrt(count)
        assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 4.5 * 2 / math.sqrt(count)


def test_keys_differ_and_stay() -> None:
    keys = {
        stream_key(seed, "weights", f"layers.{i}.{part}") for seed in range(20) for i in range(200) for part in "abc"
    }
    assert len(keys) == 20 * 200 * 3
    assert all(-(1 << 63) <= key < 1 << 63 for key in keys)
    assert stream_key(1, 2, "a") != stream_key(12, "a")
    # as `printf 0/weights/embedding.token.weight | b2sum -l 64` says: runs must resume under later versions
    digest = int.from_bytes(bytes.fromhex("d1d6f3e50760e980"), "little")
    assert stream_key(0, "weights", "embedding.token.weight") == signed(digest)


def test_clock_counts_each_blocks_micro_batches() -> None:
    clock = Clock(0)
    clock.start(40)
    assert [clock.first_sample("layers.0", 2) for _ in range(3)] == [40, 42, 44]
    assert clock.first_sample("layers.1", 2) == 40
    clock.start(80)
    assert clock.first_sample("layers.0", 2) == 80
    assert clock.moment == 2


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_drop_keeps_the_right_share_and_the_mean(probability: float) -> None:
    count = 1 << 20
    out = drop(torch.ones(count), stream_key(0, "dropout", "x"), probability, torch.arange(count))
    kept = (out != 0).double().mean()
    assert abs(kept - (1 - probability)) < 4 * math.sqrt(probability * (1 - probability) / count)
    assert out.max() == torch.tensor(1 / (1 - probability))


def test_drop_scales_without_bias_in_bfloat16() -> None:
    x = torch.rand(1 << 18, generator=torch.Generator().manual_seed(0)).add_(1).bfloat16()
    out = drop(x, stream_key(0, "dropout", "x"), 0.1, torch.arange(x.numel()))
    assert out.dtype == torch.bfloat16
    ratio = out.double().sum() / x.double()[out != 0].sum()
    assert ratio.item() == pytest.approx(1 / 0.9, rel=1e-4)  # a mask scaled in bfloat16 would give 1.1094


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_equals_cpu_to_rounding() -> None:
    key, shape = stream_key(3, "weights", "x"), (700, 300)
    there = torch.empty(shape, device="cuda")
    fill_normal(there, key, shape, (0, 0), 0.02)
    torch.testing.assert_close(there.cpu(), normal(shape, key, torch.float32, 0.02), rtol=1e-6, atol=1e-9)
    part = torch.empty(50, 60, device="cuda")
    fill_normal(part, key, shape, (33, 44), 0.02)
    assert torch.equal(part, there[33:83, 44:104])
    index = torch.arange(1 << 16)
    assert torch.equal(uniform(key, index.cuda()).cpu(), uniform(key, index))
