"""Into MX and back: the reference in 32 bits and Triton's kernels equal the definition in 64, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.formats import FORMATS, MODES, ROUNDINGS, Draw, MXTensor
from models.formats import quantize as defined
from models.kernels.mx_quantize import dequantize, quantize, quantize_both
from tests.models.kernels.harness import Guarded, noise, same_twice

KEY = (7 << 41) + 5
IMPLEMENTATIONS = ("reference", "cpp", "triton", "cuda")
"""CUDA C++ runs on the processor here, see `conftest`."""


def same(found: Tensor | None, expected: Tensor | None) -> bool:
    """Bit for bit, but for the payload of NaN."""
    if found is None or expected is None:
        return found is expected
    if found.dtype != expected.dtype or found.shape != expected.shape:
        return False
    if found.dtype.is_floating_point:
        number = ~expected.isnan()
        if not torch.equal(number, ~found.isnan()):
            return False
        bits = torch.int32 if found.itemsize == 4 else torch.int16
        found, expected = found[number].view(bits), expected[number].view(bits)
    return torch.equal(found, expected)


def check(found: MXTensor, expected: MXTensor, told: object = "") -> None:
    assert (found.format, found.dim, found.square) == (expected.format, expected.dim, expected.square)
    assert same(found.elements, expected.elements), f"elements: {told}"
    assert same(found.scales, expected.scales) and same(found.tensor_scale, expected.tensor_scale), f"scales: {told}"
    assert found.elements.is_contiguous() and found.scales.is_contiguous()


def every_bfloat16() -> Tensor:
    """All 65,536, neighbours together in the upper half, and shuffled: there all blocks but a few have NaN, so NaN and
    infinity are replaced by zeros in them."""
    found = (torch.arange(1 << 16, dtype=torch.int32) << 16).view(torch.float32)
    shuffled = found[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))]
    return torch.cat([found, torch.where(shuffled.isfinite(), shuffled, 0.0)]).to(torch.bfloat16).view(-1, 512)


def adversarial() -> Tensor:
    """float32 [R, 512]: largest magnitudes at and beside every power of two and every limit of a mode; ties and their
    neighbours under scales of 2^±120 and subnormal ones; NaN, infinity, zeros."""
    g = torch.Generator().manual_seed(1)
    powers = 2.0 ** torch.arange(-149, 128, dtype=torch.float64)
    limits = torch.tensor([1, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.984375], dtype=torch.float64)
    edges = (powers[:, None] * limits).flatten().to(torch.float32)
    edges = torch.cat([edges, *(torch.nextafter(edges, torch.tensor(limit)) for limit in (0.0, torch.inf))])
    under = edges[:, None] * torch.rand(len(edges), 32, generator=g) * torch.randn(len(edges), 32, generator=g).sign()
    under[:, 7] = -edges
    ties = (torch.arange(1, 2049, dtype=torch.float32) / 1024).view(-1, 32)
    ties = torch.cat([ties, *(torch.nextafter(ties, torch.tensor(limit)) for limit in (0.0, 9.0))])
    scaled = [(ties.double() * 2.0**place).to(torch.float32) for place in (0, -120, -126, -131, -140, 120, 126)]
    wide = torch.randn(64, 32, generator=g) * 2.0 ** torch.randint(-120, 120, (64, 32), generator=g)
    special = noise(8, 32, seed=2)
    special[0, 3], special[1, 4], special[2, 5], special[3], special[4] = torch.nan, torch.inf, -torch.inf, 0.0, -0.0
    found = torch.cat([under, *scaled, wide, special])
    return torch.cat([found, found.new_zeros(-len(found) % 16, 32)]).view(-1, 512)


def ways() -> Iterator[tuple[str, str, str]]:
    for name, mode, rounding in itertools.product(FORMATS, MODES, ROUNDINGS):
        if name != "nvfp4" or mode == "floor":
            yield name, mode, rounding


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize("numbers", [every_bfloat16, adversarial])
@pytest.mark.parametrize("name", FORMATS)
def test_every_number_is_coded_as_defined(kernels: str, numbers, name: str) -> None:
    x = numbers()
    for _, mode, rounding in (way for way in ways() if way[0] == name):
        if kernels in ("triton", "cuda") and mode in ("ceil", "even") and rounding != "nearest_even":
            continue  # modes and roundings meet in bytes alone
        expected = defined(x, name, -1, mode, rounding, draw=Draw(KEY))
        check(quantize(x, name, -1, mode, rounding, draw=Draw(KEY), kernels=kernels), expected, (mode, rounding))
        for dtype in (torch.float32, torch.bfloat16, torch.float16) if rounding == "nearest_even" else ():
            assert same(dequantize(expected, dtype, kernels), expected.dequantize(dtype)), dtype


SHAPES = [
    ((64, 96), 0),
    ((64, 96), 1),
    ((32, 2, 64), 0),
    ((2, 32, 96), 1),
    ((3, 2, 32), 2),
    ((32,), 0),
    ((2, 3, 64, 5), 2),
]


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_every_dimension_of_every_shape(kernels: str, shape: tuple[int, ...], dim: int, name: str) -> None:
    x = noise(*shape, scale=3.0)
    x.view(-1)[11], x.view(-1)[x.numel() // 2] = torch.nan, torch.inf
    for rounding in ROUNDINGS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            here = x.to(dtype)
            found = quantize(here, name, dim, rounding=rounding, draw=Draw(KEY), kernels=kernels)
            expected = defined(here, name, dim, rounding=rounding, draw=Draw(KEY))
            check(found, expected, (rounding, dtype))
        part = Draw(KEY, tuple(range(1, 1 + len(shape))), tuple(size + 7 for size in shape))
        check(
            quantize(x, name, dim, rounding=rounding, draw=part, kernels=kernels),
            defined(x, name, dim, rounding=rounding, draw=part),
            part,
        )
    for dtype in (torch.float32, torch.bfloat16):
        assert same(dequantize(expected, dtype, kernels), expected.dequantize(dtype))


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("shape", "dim"), [((64, 96), 0), ((64, 96), 1), ((32, 2, 64), 0), ((2, 64, 32), 1), ((2, 32, 64), 2)]
)
@pytest.mark.parametrize("name", FORMATS)
def test_square_blocks(kernels: str, shape: tuple[int, ...], dim: int, name: str) -> None:
    x = noise(*shape)
    x.view(-1)[11] = torch.nan
    for rounding in ("nearest_even", "stochastic"):
        expected = defined(x, name, dim, rounding=rounding, square=True, draw=Draw(KEY))
        check(quantize(x, name, dim, rounding=rounding, square=True, draw=Draw(KEY), kernels=kernels), expected)
    assert same(dequantize(expected, torch.bfloat16, kernels), expected.dequantize(torch.bfloat16))
    if shape == (64, 96):
        part = Draw(KEY, (32, 64), (96, 1 << 33))
        found = quantize(x, name, dim, rounding="stochastic", square=True, draw=part, kernels=kernels)
        check(found, defined(x, name, dim, rounding="stochastic", square=True, draw=part))


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "pair", [*((name, name) for name in FORMATS), ("mxfp4_e2m1", "mxfp6_e3m2"), ("nvfp4", "mxfp8_e5m2")]
)
@pytest.mark.parametrize("shape", [(64, 96), (32, 3, 32)])
def test_both_directions_in_one_pass(kernels: str, pair: tuple[str, str], shape: tuple[int, ...]) -> None:
    x = noise(*shape).to(torch.bfloat16)
    x.view(-1)[77] = torch.inf
    drawn = Draw(KEY, (0,) * len(shape), tuple(3 * size for size in shape))
    for rounding, draw in (("half_away", None), ("stochastic", Draw(KEY)), ("stochastic", drawn)):
        row, column = quantize_both(x, *pair, rounding=rounding, draw=draw, kernels=kernels)
        check(row, defined(x, pair[0], -1, rounding=rounding, draw=draw))
        check(column, defined(x, pair[1], 0, rounding=rounding, draw=draw))


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["mxfp4_e2m1", "mxfp6_e3m2", "nvfp4"])
def test_places_of_tokens_of_many_samples(kernels: str, name: str) -> None:
    """As training tells them: [S, B, features] of a shard, samples above 2^40, a key that is a tensor."""
    x, key = noise(32, 3, 64), torch.tensor(KEY - (1 << 62))
    positions, samples = (torch.arange(32) + 5) * 4096, (torch.arange(3) + (1 << 21) - 1) << 40
    features = torch.cat([torch.arange(32) + 96, torch.arange(32) + 1024])
    draw = Draw(key, places=(positions, samples, features))
    for dim in (0, 2):
        found = quantize(x, name, dim, rounding="stochastic", draw=draw, kernels=kernels)
        check(found, defined(x, name, dim, rounding="stochastic", draw=draw), dim)
    for ours, dim in zip(
        quantize_both(x, name, name, rounding="stochastic", draw=draw, kernels=kernels), (2, 0), strict=True
    ):
        check(ours, defined(x, name, dim, rounding="stochastic", draw=draw), dim)
    flat = Draw(key, places=(positions + (7 << 40), features))
    found = quantize(x[:, 1], name, 0, rounding="stochastic", square=True, draw=flat, kernels=kernels)
    check(found, defined(x[:, 1], name, 0, rounding="stochastic", square=True, draw=flat))


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_strides_alignments_and_widths(kernels: str, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(FORMATS)))
    rows, columns = (data.draw(st.integers(0, 4)) * 32 for _ in range(2))
    rows += data.draw(st.integers(0, 3)) if (along_rows := data.draw(st.booleans())) else 0
    whole = noise(rows + 2, columns + 9, seed=data.draw(st.integers(0, 9)))
    x = whole[1 : 1 + rows, (start := data.draw(st.integers(0, 9))) : start + columns]
    if data.draw(st.booleans()):
        x = x.t().contiguous().t()
    dim, rounding = (1 if along_rows else 0), data.draw(st.sampled_from(ROUNDINGS))
    before = whole.clone()
    found = quantize(x, name, dim, rounding=rounding, draw=Draw(KEY), kernels=kernels)
    check(found, defined(x, name, dim, rounding=rounding, draw=Draw(KEY)))
    assert same(dequantize(found, torch.float32, kernels), found.dequantize()) and torch.equal(whole, before)


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_a_part_of_an_nvfp4_tensor_is_scaled_as_the_whole(kernels: str) -> None:
    x = noise(32, 64)
    found = quantize(x[:16], "nvfp4", whole_amax=x.abs().max(), kernels=kernels)
    assert same(found.elements, quantize(x, "nvfp4", kernels=kernels).elements[:16])


@pytest.mark.parametrize("kernels", IMPLEMENTATIONS)
def test_rows_are_alone_and_runs_alike(kernels: str) -> None:
    x = noise(7, 128)
    whole = quantize(x, "mxfp6_e3m2", kernels=kernels)
    assert torch.equal(quantize(x[3:4], "mxfp6_e3m2", kernels=kernels).elements, whole.elements[3:4])

    def run() -> list[Tensor]:
        made = quantize(x, "mxfp4_e2m1", rounding="stochastic", draw=Draw(3), kernels=kernels)
        return [made.elements, made.scales, dequantize(made, torch.bfloat16, kernels)]

    same_twice(run)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_written_beyond(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import models.kernels.mx_quantize.triton as launches

    guards: list[Guarded] = []
    real = launches.storage

    def guarded(*arguments) -> tuple[Tensor, Tensor, Tensor]:
        *parts, whole = real(*arguments)
        guards.extend(made := [Guarded(part.shape, part.dtype) for part in parts])
        return made[0].tensor, made[1].tensor, whole

    monkeypatch.setattr(launches, "storage", guarded)
    x = noise(96, 160)
    (elements, scales, _), _ = launches.quantize(x, (name, name), 0, "floor", "nearest_even", False, None, None)
    expected = defined(x, name)
    assert torch.equal(elements, expected.elements) and torch.equal(scales, expected.scales) and len(guards) == 4
    for guard in guards:
        guard.check()


def test_operators_are_right_for_compilers() -> None:
    from models.kernels.mx_quantize.operators import _dequantize, _quantize

    x = noise(32, 64)
    lines = [torch.arange(32) << 30, torch.arange(64)]
    for name in ("nvfp4",):
        torch.library.opcheck(
            _quantize,
            ("triton", x, name, name, 0, "floor", "stochastic", False, torch.tensor(-5), lines, True, None),
        )
        made = quantize(x, name, kernels="triton")
        torch.library.opcheck(
            _dequantize, (made.elements, made.scales, made.tensor_scale, name, 1, False, torch.bfloat16)
        )


@pytest.mark.parametrize(("kernels", "backend"), [("triton", "aot_eager"), ("reference", "inductor")])
def test_compiled_whole(kernels: str, backend: str) -> None:
    x = torch.cat([adversarial(), every_bfloat16().float()])[:640:4]

    def work(x: Tensor) -> list[Tensor]:
        found = []
        for name, rounding in (("mxfp6_e3m2", "half_away"), ("mxfp4_e2m1", "stochastic")):
            row, column = quantize_both(x, name, "mxint8", rounding=rounding, draw=Draw(KEY), kernels=kernels)
            found += [
                row.elements,
                row.scales,
                column.elements,
                column.scales,
                dequantize(row, torch.bfloat16, kernels),
            ]
        return found

    for found, expected in zip(torch.compile(work, fullgraph=True, backend=backend)(x), work(x), strict=True):
        assert same(found, expected)


def test_mistakes_are_told() -> None:
    with pytest.raises(ModelError, match="no multiple of the block"):
        quantize(torch.ones(4, 33), "mxint8", kernels="triton")
    with pytest.raises(ModelError, match="needs a key"):
        quantize_both(torch.ones(32, 32), "mxint8", "mxint8", rounding="stochastic")
    with pytest.raises(ModelError, match="no such format"):
        quantize_both(torch.ones(32, 32), "mxint8", "mxint9")
