"""AdamW's kernels against their reference, bit for bit, and the reference against torch and float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.errors import ModelError
from models.kernels.adamw import Draw, Scalars, Tables, adamw_, launch
from models.kernels.adamw.reference import stochastic_bf16
from models.kernels.adamw.tables import CHUNK, place_of
from models.keys import signed
from tests.models.kernels.harness import Guarded, noise

SCALARS = Scalars.at(3, 1e-3, (0.9, 0.95), 1e-8, 0.1)
SHAPES = [(130, 77), (5,), (CHUNK // 128, 128), (1,), (0,), (CHUNK + 3,)]
MODES = ("master", "shadow", "stochastic")
F32, BF16 = torch.float32, torch.bfloat16


class Case:
    """Tensors of a step, the same for the same arguments. offset: elements that each lies behind an aligned address."""

    def __init__(
        self,
        mode: str,
        gradient: torch.dtype = F32,
        shapes: Any = None,
        offset: int = 0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        shapes, narrow = SHAPES if shapes is None else shapes, mode == "stochastic"
        kinds = iter(range(100 * seed, 100 * seed + 100))

        def tensors(dtype: torch.dtype, scale: float) -> list[Tensor]:
            found, kind = [], next(kinds)
            for place, shape in enumerate(shapes):
                count = torch.Size(shape).numel()
                values = noise(count, seed=100 * kind + place, scale=scale).to(dtype)
                whole = torch.zeros(count + offset, dtype=dtype, device=device)
                whole[offset:].copy_(values)
                found.append(whole[offset:].view(shape))
            return found

        self.parameters = tensors(BF16 if narrow else F32, 1.0)
        self.gradients = tensors(gradient, 1.0)
        self.exp_avgs = tensors(F32, 0.1)
        self.exp_avg_sqs = [square.square_() for square in tensors(F32, 0.1)]
        self.shadows = tensors(BF16, 1.0) if mode == "shadow" else []
        self.draws = [Draw((0x9E3779B97F4A7C15 * (i + 1)) % 2**64) for i in range(len(shapes))] if narrow else []
        self.factor = torch.tensor(0.37, device=device)

    def step(self, kernels: str, scalars: Scalars = SCALARS, statistics: bool = False) -> Tensor | None:
        return adamw_(
            self.parameters, self.gradients, self.exp_avgs, self.exp_avg_sqs, scalars, self.factor, self.shadows,
            self.draws, statistics=statistics, kernels=kernels,
        )  # fmt: skip

    @property
    def written(self) -> list[Tensor]:
        return [*self.parameters, *self.exp_avgs, *self.exp_avg_sqs, *self.shadows]


def same_bits(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """But for the payload of NaN."""
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.cpu(), other.cpu()
        assert torch.equal(one.isnan(), other.isnan())
        kind = torch.int16 if one.dtype == BF16 else torch.int32
        assert torch.equal(one.nan_to_num(7.0).contiguous().view(kind), other.nan_to_num(7.0).contiguous().view(kind))


@pytest.mark.parametrize("gradient", [F32, BF16], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernels", ["triton", "cuda"])
def test_kernels_on_the_processor_equal_the_reference(kernels: str, mode: str, gradient: torch.dtype) -> None:
    ours, theirs = Case(mode, gradient), Case(mode, gradient)
    found, expected = ours.step(kernels, statistics=True), theirs.step("reference", statistics=True)
    same_bits(ours.written, theirs.written)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
@settings(max_examples=12, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4),
    mode=st.sampled_from(MODES),
    gradient=st.sampled_from([F32, BF16]),
    offset=st.integers(0, 5),
    wild=st.sampled_from([0.0, torch.nan, torch.inf, -torch.inf, 1e-42, 3e38]),
    step=st.integers(1, 10**6),
    epsilon=st.sampled_from([0.0, 1e-8, 1e-3]),
)
def test_any_shape_alignment_and_number_gives_the_same_bits(
    kernels, shapes, mode, gradient, offset, wild, step, epsilon
) -> None:
    cases = [Case(mode, gradient, shapes, offset, seed=step) for _ in range(2)]
    for case in cases:
        for tensor in (*case.gradients, *case.parameters):
            tensor.view(-1)[::5] = wild
    scalars = Scalars.at(step, 0.01, (0.8, 0.99), epsilon, 0.3)
    cases[0].step(kernels, scalars)
    cases[1].step("reference", scalars)
    same_bits(cases[0].written, cases[1].written)


def test_reference_is_adamw_within_rounding() -> None:
    """Ten steps beside torch's own: in float64 to its rounding, in float32 no farther from float64 than torch is, twice."""

    def ours(dtype: torch.dtype) -> Tensor:
        p, m, v = noise(1000, dtype=dtype), torch.zeros(1000, dtype=dtype), torch.zeros(1000, dtype=dtype)
        for step in range(1, 11):
            scalars = Scalars.at(step, 0.01, (0.9, 0.95), 1e-8, 0.1)
            adamw_([p], [noise(1000, seed=step, dtype=dtype)], [m], [v], scalars, kernels="reference")
        return p

    def theirs(dtype: torch.dtype) -> Tensor:
        p = torch.nn.Parameter(noise(1000, dtype=dtype))
        optimizer = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False)
        for step in range(1, 11):
            p.grad = noise(1000, seed=step, dtype=dtype)
            optimizer.step()
        return p.detach()

    exact = theirs(torch.float64)
    torch.testing.assert_close(ours(torch.float64), exact, rtol=1e-13, atol=1e-14)
    error = (ours(F32).double() - exact).abs().max()
    assert error <= 2 * (theirs(F32).double() - exact).abs().max()


def test_rounding_is_right_in_the_mean_and_falls_on_neighbours_only() -> None:
    x = torch.full((1 << 16,), 1 + 2.0**-9)  # a quarter of the way from 1 to its neighbour
    found = stochastic_bf16(x, Draw(7)).float()
    assert set(found.tolist()) == {1.0, 1 + 2.0**-7}
    assert abs(float(found.mean()) - (1 + 2.0**-9)) < 5 * 2.0**-7 * (3 / 16 / x.numel()) ** 0.5
    kept = torch.tensor([0.0, -0.0, 1.5, -(2.0**100), torch.inf, -torch.inf])
    assert torch.equal(stochastic_bf16(kept, Draw(3)).float(), kept)
    assert stochastic_bf16(torch.tensor([torch.nan]), Draw(1)).isnan().all()


@pytest.mark.parametrize("kernels", ["reference", "triton", "cuda"])
def test_a_part_takes_the_bits_of_its_place_in_the_whole(kernels: str) -> None:
    """Rows as FSDP cuts them, columns as the tensor axis does, a corner of both."""
    for rows, columns in ((slice(8, 32), slice(0, 40)), (slice(0, 48), slice(10, 30)), (slice(7, 19), slice(3, 40))):
        part, window = Case("stochastic", shapes=[(48, 40)]), (rows, columns)
        for tensors in (part.parameters, part.gradients, part.exp_avgs, part.exp_avg_sqs):
            tensors[0] = tensors[0][window].contiguous()
        part.draws = [Draw(part.draws[0].key, (rows.start, columns.start), (48, 40))]
        part.step(kernels)
        full = Case("stochastic", shapes=[(48, 40)])
        full.step("reference")
        same_bits(part.written, [tensor[window] for tensor in full.written])
    assert place_of(Draw(1, (2, 0, 0), (8, 3, 4)), (2, 3, 4)) == (24, 24, 24)
    assert place_of(Draw(1, (2, 1, 0), (8, 3, 4)), (2, 1, 4)) == (28, 4, 12)
    with pytest.raises(ModelError, match="evenly"):
        place_of(Draw(1, (0, 0, 1), (8, 3, 4)), (8, 2, 2))


def test_indices_beyond_32_bits_have_bits_of_their_own() -> None:
    found = []
    for kernels in ("reference", "triton"):
        for start in (0, 2**32):
            case = Case("stochastic", shapes=[(64,)])
            case.draws = [Draw(case.draws[0].key, (start,), (2**33,))]
            case.step(kernels)
            found.append(case.parameters[0])
    same_bits(found[:2], found[2:])
    assert not torch.equal(found[0], found[1])


def test_nothing_is_written_beyond_a_tensor() -> None:
    shapes, guarded = [(33,), (CHUNK + 1,)], list[Guarded]()

    def make(dtype: torch.dtype) -> list[Tensor]:
        made = [Guarded(shape, dtype) for shape in shapes]
        guarded.extend(made)
        return [one.tensor for one in made]

    p, m, v, shadows = make(F32), make(F32), make(F32), make(BF16)
    adamw_(p, [torch.ones(shape) for shape in shapes], m, v, SCALARS, shadows=shadows, kernels="triton")
    assert all(bool(one.any()) for one in (*p, *shadows))
    for one in guarded:
        one.check()


def test_a_tensor_alone_and_among_others_and_twice() -> None:
    alone, among, again = (Case("stochastic", shapes=shapes) for shapes in ([SHAPES[0]], SHAPES, SHAPES))
    for case in (alone, among, again):
        case.step("triton")
    same_bits(among.written, again.written)
    same_bits(alone.parameters, among.parameters[:1])


def test_gradients_with_strides_and_no_tensors_at_all() -> None:
    ours, theirs = Case("master", shapes=[(12, 20)]), Case("master", shapes=[(12, 20)])
    ours.gradients = [ours.gradients[0].T.contiguous().T]
    ours.step("triton")
    theirs.step("reference")
    same_bits(ours.written, theirs.written)
    assert adamw_([], [], [], [], SCALARS) is None


def bad_cases() -> list[tuple[str, Callable[[Case], None]]]:
    return [
        ("without draws", lambda case: case.parameters.__setitem__(0, case.parameters[0].bfloat16())),
        ("moments", lambda case: case.exp_avgs.__setitem__(0, case.exp_avgs[0].bfloat16())),
        ("moments", lambda case: case.exp_avg_sqs.__setitem__(0, case.exp_avg_sqs[0].double())),
        ("several dtypes", lambda case: case.gradients.append(case.gradients[0].bfloat16())),
        ("shapes", lambda case: case.gradients.pop()),
        ("strides", lambda case: case.parameters.__setitem__(0, torch.zeros(8, 4).T)),
        ("shadow is bfloat16", lambda case: case.shadows.append(torch.zeros(4, 8, dtype=torch.float16))),
        ("shapes", lambda case: case.shadows.append(torch.zeros(3, dtype=BF16))),
    ]


@pytest.mark.parametrize(("told", "spoil"), bad_cases())
def test_what_cannot_be_is_refused(told: str, spoil: Callable[[Case], None]) -> None:
    case = Case("master", shapes=[(4, 8)])
    spoil(case)
    with pytest.raises(ModelError, match=told):
        case.step("triton")


@pytest.mark.parametrize("mode", MODES)
def test_operator_is_well_formed(mode: str) -> None:
    case = Case(mode, shapes=[(6, 7), (3,)])
    places = [
        number for p, draw in zip(case.parameters, case.draws, strict=False) for number in place_of(draw, p.shape)
    ]
    torch.library.opcheck(
        torch.ops.triaxis.adamw.default,
        (
            case.parameters, case.gradients, case.exp_avgs, case.exp_avg_sqs, case.shadows, case.factor.reshape(1),
            list(SCALARS.tuple()), [signed(draw.key) for draw in case.draws], places, True, "triton",
        ),
    )  # fmt: skip


def test_within_a_compiled_function() -> None:
    ours, theirs = Case("shadow", shapes=[(6, 7), (3,)]), Case("shadow", shapes=[(6, 7), (3,)])
    torch.compile(lambda case: case.step("triton"), fullgraph=True, backend="aot_eager")(ours)
    theirs.step("reference")
    same_bits(ours.written, theirs.written)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kernels", ["triton", "cuda"])
@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("gradient", [F32, BF16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_on_a_gpu_the_bits_are_those_of_the_reference_on_cpu(mode, gradient, offset, kernels) -> None:
    ours, theirs = Case(mode, gradient, offset=offset, device="cuda"), Case(mode, gradient, offset=offset)
    for case in (ours, theirs):
        case.gradients[0].view(-1)[:4] = torch.tensor([torch.nan, torch.inf, 1e-42, 3e38])
    found = ours.step(kernels, statistics=True)
    expected = theirs.step("reference", statistics=True)
    same_bits(ours.written, theirs.written)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=0, equal_nan=True)


def test_launch_counts_nothing_for_empty_tensors() -> None:
    empty = [torch.zeros(0)]
    tables = Tables([0], torch.device("cpu"))
    tables.point(empty, empty, empty, empty)
    assert torch.equal(launch("triton", tables, F32, SCALARS, torch.ones(1), statistics=True), torch.zeros(1, 2))
